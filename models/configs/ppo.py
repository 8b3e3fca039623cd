"""Settings of PPO."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.optimisation import OptimConfig
from models.configs.policy_gradient import ClippedConfig
from models.configs.rewards import RewardSource


class PPOConfig(ClippedConfig):
    """PPO with a critic, GAE and a per-token KL to the reference in the reward."""

    reward: RewardSource = Field(default="reward_model", description="Who scores completions; weighted = the sum of rewards.")
    epochs: int = Field(default=2, ge=1, description="Passes over a round's completions; 2 to 4 are usual.")
    kl_coefficient: float = Field(default=0.05, ge=0, description="Price of a nat of KL to the reference, in reward units.")
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        default="k1", description="How the KL is estimated from each sampled token; k1 is the one with the gradient of the KL."
    )
    kl_target_nats: float = Field(
        default=0.0, ge=0, description="KL per completion that the price is moved towards, round by round; 0 = the price stays."
    )
    kl_rate: float = Field(default=0.1, gt=0, le=1, description="Share of its relative error, itself cut to 0.2, by which it moves.")
    reward_clip: float = Field(default=0.0, ge=0, description="Scores are cut to this far from 0, in reward units; 0 = they are not.")
    whiten_rewards: bool = Field(default=False, description="Scale a round's token rewards, KL included, to deviation 1.")
    discount: float = Field(default=1.0, gt=0, le=1, description="Gamma.")
    gae_decay: float = Field(default=0.95, ge=0, le=1, description="Lambda of generalised advantage estimation.")
    value_head: Literal["zero", "reward_model"] = Field(
        default="zero", description="How the critic's head starts where the reward model is the reward: at zero, or as the reward model's."
    )
    value_clip: float = Field(
        default=0.2, ge=0, description="A value moves at most this far from its old one in an update's target; 0 = any way."
    )
    value_coefficient: float = Field(default=0.5, gt=0, description="Weight of the critic's loss 1/2 (V - G)^2.")
    value_optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(learning_rate=5e-6, schedule="constant"), description="Optimiser of the critic."
    )
    ptx_coefficient: float = Field(
        default=0.0, ge=0, description="PPO-ptx: weight of the mean log-likelihood of the tokens mixed in, per nat; 0 = plain PPO."
    )
    ptx_batch_size: int = Field(default=16, ge=1, description="Demonstrations or documents of an update, for ptx_coefficient.")
    ptx_table: Literal["demonstrations", "documents"] = Field(
        default="demonstrations", description="What of the data is mixed in, for ptx_coefficient: conversations, or plain texts."
    )

    @model_validator(mode="after")
    def _controlled(self) -> "PPOConfig":
        if self.kl_target_nats and not self.kl_coefficient:
            raise ValueError("kl_target_nats moves kl_coefficient by shares of itself, and 0 stays 0: start from a kl_coefficient above 0")
        return self
