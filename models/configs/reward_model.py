"""Settings of reward-model training."""

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.checkpointing import CheckpointConfig
from models.configs.lora import LoraSettings
from models.configs.optimisation import OptimConfig


class RewardModelConfig(StageConfig):
    """Bradley-Terry on preference pairs; the head reads the end-of-turn token."""

    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs; more than one overfits quickly.")
    batch_size: int = Field(default=32, ge=1, description="Pairs an update.")
    max_updates: int = Field(default=0, ge=0, description="Stop after this many optimiser updates; 0 = after the epochs.")
    use_margin: bool = Field(default=False, description="Ask for a reward gap of at least the pair's margin.")
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=1e-5), description="Optimiser.")
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    max_tokens: int = Field(
        default=1024, ge=8, description="Pairs longer than this, in tokens with both completions, are left out and counted."
    )
    lora: LoraSettings = Field(default_factory=LoraSettings, description="Low-rank adapters instead of all weights of the backbone.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="How often to save for resume.")
