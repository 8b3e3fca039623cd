"""Settings of supervised fine-tuning."""

from typing import Literal

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.lora import LoraSettings
from models.configs.optimisation import OptimConfig
from models.configs.parallel import ParallelConfig


class SFTConfig(StageConfig):
    """Imitation of demonstrations."""

    epochs: float = Field(default=1.0, gt=0, description="Passes over the demonstrations.")
    batch_size: int = Field(default=32, ge=1, description="Demonstrations an update.")
    max_updates: int = Field(default=0, ge=0, description="Stop after this many optimiser updates; 0 = after the epochs.")
    normaliser: Literal["token_mean", "sequence_mean", "sum"] = Field(
        default="token_mean", description="Denominator of the loss: tokens of the whole batch, each sequence's own length, or none."
    )
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=2e-5), description="Optimiser.")
    micro_batch_tokens: int = Field(
        default=4096, ge=16, description="Tokens of a forward and backward pass; an update is as many passes as it takes."
    )
    max_tokens: int = Field(default=2048, ge=8, description="Demonstrations longer than this, in tokens, are left out and counted.")
    lora: LoraSettings = Field(default_factory=LoraSettings, description="Low-rank adapters instead of all weights.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What to save for resume, and to keep of the way.")
    parallel: ParallelConfig = Field(default_factory=ParallelConfig, description="Several processes for one model.")
