"""Settings of two-argument preference models."""

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.checkpointing import ResumeConfig
from models.configs.optimisation import OptimConfig
from models.configs.parallel import ParallelConfig


class PreferenceModelConfig(StageConfig):
    """P(y beats y' | x) from preference pairs: a strength, and planes in which preferences may run in circles."""

    planes: int = Field(default=4, ge=1, le=64, description="Planes of circular preference; each adds two numbers a completion.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs; more than one overfits quickly.")
    batch_size: int = Field(default=32, ge=1, description="Pairs an update.")
    max_updates: int = Field(default=0, ge=0, description="Stop after this many optimiser updates; 0 = after the epochs.")
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=1e-5), description="Optimiser.")
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    max_tokens: int = Field(
        default=1024, ge=8, description="Pairs longer than this, in tokens with both completions, are left out and counted."
    )
    checkpoint: ResumeConfig = Field(default_factory=ResumeConfig, description="How often to save for resume.")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Several processes for one model.")
