"""Settings of PPO."""

from typing import Literal

from pydantic import Field

from models.configs.optimisation import OptimConfig
from models.configs.policy_gradient import ClippedConfig
from models.configs.rewards import RewardSource


class PPOConfig(ClippedConfig):
    """PPO with a critic, GAE and a per-token KL to the reference in the reward."""

    reward: RewardSource = Field(default="reward_model", description="Who scores completions; weighted = the sum of rewards.")
    epochs: int = Field(default=2, ge=1, description="Passes over a round's completions; 2 to 4 are usual.")
    kl_coefficient: float = Field(default=0.05, ge=0, description="Price of a nat of KL to the reference, in reward units.")
    discount: float = Field(default=1.0, gt=0, le=1, description="Gamma.")
    gae_decay: float = Field(default=0.95, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    value_head: Literal["zero", "reward_model"] = Field(
        default="zero", description="How the critic's head starts where the reward model is the reward: at zero, or as the reward model's."
    )
    value_clip: float = Field(default=0.2, gt=0, description="A value moves at most this far from its old one in an update's target.")
    value_coefficient: float = Field(default=0.5, gt=0, description="Weight of the value loss.")
    value_optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(learning_rate=5e-6, schedule="constant"), description="Optimiser of the critic."
    )
