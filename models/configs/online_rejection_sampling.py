"""Settings of online rejection sampling."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.base import StageConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.optimisation import OptimConfig
from models.configs.sampling import SamplingConfig


class OnlineRejectionSamplingConfig(StageConfig):
    """Rounds of sampling from the policy as it is, keeping the best, imitating them."""

    rounds: int = Field(default=10, ge=1, description="Rounds of sampling and imitating.")
    prompts_per_round: int = Field(default=32, ge=1, description="Prompts sampled in a round.")
    samples_per_prompt: int = Field(default=8, ge=2, description="Completions of each prompt, of which the best is looked for.")
    reward: Literal["reward_model", "verifier"] = Field(default="reward_model", description="Who scores completions.")
    select: Literal["top_per_prompt", "top_k_overall", "random"] = Field(
        default="top_per_prompt",
        description="Keep the best completion of each prompt, the best of all, or (a control) as many as top_per_prompt at random.",
    )
    keep: int = Field(default=0, ge=0, description="How many completions of a round to keep in all, the best first; 0 = one a prompt.")
    min_score: float = Field(default=-1e6, description="Completions scored lower are not kept; the default keeps any.")
    keep_unfinished: bool = Field(
        default=False, description="Also imitate completions that were cut off at their longest: the policy would learn not to stop."
    )
    epochs: int = Field(default=1, ge=1, description="Passes over a round's kept completions.")
    minibatches: int = Field(default=1, ge=1, description="Optimiser updates a pass.")
    normaliser: Literal["token_mean", "sequence_mean", "sum"] = Field(
        default="token_mean", description="Denominator of the loss: tokens of the whole update, each sequence's own length, or none."
    )
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How completions are sampled.")
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=1e-5, schedule="constant"), description="Optimiser.")
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What to save for resume, and to keep of the way.")

    @model_validator(mode="after")
    def _samples_differ(self) -> "OnlineRejectionSamplingConfig":
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature 0 is greedy: all samples of a prompt are equal and none is better; use 1.0")
        return self

    @property
    def updates_per_round(self) -> int:
        """Optimiser updates of one round."""
        return self.epochs * self.minibatches
