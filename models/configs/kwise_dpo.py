"""Settings of DPO on K-way rankings."""

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.optimisation import OptimConfig
from models.configs.parallel import ParallelConfig


class KWiseDPOConfig(StageConfig):
    """DPO on all comparisons of K-way rankings; the reference is the policy it starts from."""

    beta: float = Field(default=0.1, gt=0, description="Strength of the tie to the reference, per nat.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the rankings.")
    batch_size: int = Field(default=16, ge=1, description="Rankings an update.")
    max_updates: int = Field(default=0, ge=0, description="Stop after this many optimiser updates; 0 = after the epochs.")
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=5e-6), description="Optimiser.")
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    max_tokens: int = Field(
        default=2048, ge=8, description="Rankings longer than this, in tokens with all completions, are left out and counted."
    )
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What to save for resume, and to keep of the way.")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Several processes for one model.")
