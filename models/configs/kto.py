"""Settings of Kahneman-Tversky optimisation."""

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.optimisation import OptimConfig
from models.configs.parallel import ParallelConfig


class KTOConfig(StageConfig):
    """KTO on single completions labelled desirable or undesirable; the reference is the policy it starts from."""

    beta: float = Field(default=0.1, gt=0, description="Strength of the tie to the reference, per nat.")
    desirable_weight: float = Field(
        default=1.0,
        gt=0,
        description="Weight of a desirable completion. Raise the weight of the scarcer kind until weight times number is about equal.",
    )
    undesirable_weight: float = Field(default=1.0, gt=0, description="Weight of an undesirable completion.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the labels.")
    batch_size: int = Field(
        default=32, ge=2, description="Completions an update; they also estimate the KL that rewards are measured from, so not too few."
    )
    max_updates: int = Field(default=0, ge=0, description="Stop after this many optimiser updates; 0 = after the epochs.")
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=5e-6), description="Optimiser.")
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    max_tokens: int = Field(
        default=1024, ge=8, description="Prompts with completions longer than this, in tokens, are left out and counted."
    )
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What to save for resume, and to keep of the way.")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Several processes for one model.")
