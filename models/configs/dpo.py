"""Settings of direct preference optimisation."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.base import StageConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.lora import LoraSettings
from models.configs.optimisation import OptimConfig
from models.configs.parallel import ParallelConfig

DEFAULT_ALPHA = 0.5


class PairLossConfig(StageConfig):
    """How one pair of completions becomes a loss."""

    loss: Literal["sigmoid", "conservative", "robust", "ipo", "simpo", "orpo"] = Field(
        default="sigmoid",
        description="sigmoid: DPO. conservative, robust: DPO for labels of which label_smoothing are wrong. ipo: a fixed gap instead of an "
        "ever wider one. simpo, orpo: without a reference.",
    )
    beta: float = Field(
        default=0.1,
        gt=0,
        description="Strength of the tie to the reference, per nat. simpo: scale of the mean log-probabilities, 2 to 10 are usual. "
        "orpo: weight of the odds ratio beside the likelihood of the chosen completion.",
    )
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5, description="Share of wrong labels, for loss = conservative and robust.")
    target_margin: float = Field(default=0.0, ge=0, description="Gamma of simpo: how far apart scaled mean log-probabilities should be.")
    length_normalised: bool = Field(
        default=False, description="Log-ratios per token instead of per completion; simpo and orpo are so in any case."
    )
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = Field(
        default="reverse_kl", description="Which divergence ties the policy to the reference (f-DPO), for sigmoid, conservative and robust."
    )
    alpha: float = Field(
        default=DEFAULT_ALPHA, gt=0, lt=1, description="Of divergence = alpha: near 0 it is the reverse KL, near 1 the forward KL."
    )

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares the policy with a reference."""
        return self.loss not in ("simpo", "orpo")

    @model_validator(mode="after")
    def _one_method(self) -> "PairLossConfig":
        is_noisy = self.loss in ("conservative", "robust")
        if is_noisy != (self.label_smoothing > 0):
            fix = "give the share of wrong labels, such as 0.1" if is_noisy else "only conservative and robust read it; set it to 0"
            raise ValueError(f"label_smoothing {self.label_smoothing} with loss {self.loss}: {fix}")
        if self.target_margin and self.loss != "simpo":
            raise ValueError(f"target_margin {self.target_margin} with loss {self.loss}: only simpo reads it; set it to 0")
        if self.length_normalised and not self.has_reference:
            raise ValueError(f"length_normalised with loss {self.loss}: it always is; leave it off")
        if self.divergence != "reverse_kl" and (self.length_normalised or self.loss in ("ipo", "simpo", "orpo")):
            raise ValueError(
                f"divergence {self.divergence} with loss {self.loss}, length_normalised {self.length_normalised}: others are for "
                "the log-ratios of whole completions in sigmoid, conservative and robust; use reverse_kl"
            )
        if self.alpha != DEFAULT_ALPHA and self.divergence != "alpha":
            raise ValueError(f"alpha {self.alpha} with divergence {self.divergence}: only divergence = alpha reads it; leave it out")
        return self


class DPOConfig(PairLossConfig):
    """DPO and its relatives on preference pairs; the reference is the policy it starts from, and stays so unless it is synchronised."""

    reference_sync_every: int = Field(
        default=0, ge=0, description="Updates after which the reference moves towards the policy (TR-DPO), again and again; 0 = never."
    )
    reference_sync_share: float = Field(
        default=1.0, gt=0, le=1, description="How far it moves: share of the policy's weights in the new reference; 1 = a copy."
    )
    tie_threshold: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Implicit-reward differences that a judge does not see: tied pairs are learned from too (Rao-Kupper; "
        "log 3 = 1.1 lets equal answers tie half of the time). 0 = pairs with a winner only.",
    )
    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs.")
    batch_size: int = Field(default=32, ge=1, description="Pairs an update.")
    max_updates: int = Field(default=0, ge=0, description="Stop after this many optimiser updates; 0 = after the epochs.")
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=5e-6), description="Optimiser.")
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    max_tokens: int = Field(
        default=1024, ge=8, description="Pairs longer than this, in tokens with both completions, are left out and counted."
    )
    lora: LoraSettings = Field(default_factory=LoraSettings, description="Low-rank adapters instead of all weights.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What to save for resume, and to keep of the way.")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Several processes for one model.")

    @model_validator(mode="after")
    def _ties(self) -> "DPOConfig":
        if self.tie_threshold and self.loss != "sigmoid":
            raise ValueError(f"tie_threshold {self.tie_threshold} with loss {self.loss}: only sigmoid knows ties; set it to 0")
        return self

    @model_validator(mode="after")
    def _sync(self) -> "DPOConfig":
        if self.reference_sync_every and not self.has_reference:
            raise ValueError(f"reference_sync_every {self.reference_sync_every} with loss {self.loss}, which has no reference: set it to 0")
        if self.reference_sync_share < 1 and not self.reference_sync_every:
            raise ValueError(f"reference_sync_share {self.reference_sync_share} without reference_sync_every: say after how many updates")
        if self.reference_sync_every and self.lora.rank:
            raise ValueError(
                f"reference_sync_every {self.reference_sync_every} with lora.rank {self.lora.rank}: the reference has no adapters "
                "that could follow; set one of the two to 0"
            )
        return self
