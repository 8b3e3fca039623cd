"""Settings of reward-model training."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.base import StageConfig
from models.configs.checkpointing import ResumeConfig
from models.configs.lora import LoraSettings
from models.configs.optimisation import OptimConfig
from models.configs.parallel import ParallelConfig


class RewardModelConfig(StageConfig):
    """A scalar head learns from comparisons; it reads the end-of-turn token."""

    loss: Literal["bradley_terry", "prefix_bradley_terry", "k_wise"] = Field(
        default="bradley_terry",
        description="Learn from pairs; from all prefixes of equal length of pairs, for a model that guides decoding token by token; "
        "or from all comparisons of K-way rankings.",
    )
    pairs: Literal["train", "test"] = Field(
        default="train",
        description="What it learns from: the pairs that policies are trained on too, or those that are held out, for a second reward "
        "model by which policies are judged. The two share no prompt. It is measured on the pairs that it does not learn from.",
    )
    centring_coefficient: float = Field(
        default=0.0, ge=0, description="Weight of (r_better + r_worse)^2, which keeps rewards near 0 (0.01 in the literature); 0 = none."
    )
    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs or rankings; more than one overfits quickly.")
    batch_size: int = Field(default=32, ge=1, description="Pairs, or rankings, an update.")
    max_updates: int = Field(default=0, ge=0, description="Stop after this many optimiser updates; 0 = after the epochs.")
    use_margin: bool = Field(
        default=False,
        description="Ask for a reward gap of at least the pair's margin (of a ranking: the difference of the judge's scores).",
    )
    tie_threshold: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Reward differences that a judge does not see: tied pairs are learned from too (Rao-Kupper; "
        "log 3 = 1.1 lets equal answers tie half of the time). 0 = pairs with a winner only.",
    )
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=1e-5), description="Optimiser.")
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    max_tokens: int = Field(
        default=1024, ge=8, description="Pairs or rankings longer than this, in tokens with all completions, are left out and counted."
    )
    lora: LoraSettings = Field(default_factory=LoraSettings, description="Low-rank adapters instead of all weights of the backbone.")
    checkpoint: ResumeConfig = Field(default_factory=ResumeConfig, description="How often to save for resume.")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Several processes for one model.")

    @model_validator(mode="after")
    def _whole_completions(self) -> "RewardModelConfig":
        if self.loss == "prefix_bradley_terry" and (self.use_margin or self.centring_coefficient):
            raise ValueError(
                "use_margin and centring_coefficient are for whole completions, and prefix_bradley_terry compares prefixes: leave them out"
            )
        if self.tie_threshold and self.loss != "bradley_terry":
            raise ValueError(
                f"tie_threshold {self.tie_threshold} with loss {self.loss}: ties.parquet holds pairs, for bradley_terry; set it to 0"
            )
        if self.tie_threshold and self.pairs == "test":
            raise ValueError(f"tie_threshold {self.tie_threshold} with pairs test: no tie is held out; set it to 0")
        return self
