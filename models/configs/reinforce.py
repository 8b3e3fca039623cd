"""Settings of REINFORCE and of the actor-critic: one update a round, at the policy that sampled."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.optimisation import OptimConfig
from models.configs.policy_gradient import PolicyGradientConfig
from models.configs.rewards import RewardSource


class OneUpdateConfig(PolicyGradientConfig):
    """Policy gradients without a probability ratio, which are right at the policy that sampled and nowhere else."""

    reward: RewardSource = Field(default="reward_model", description="Who scores completions; weighted = the sum of rewards.")
    kl_coefficient: float = Field(
        default=0.05, ge=0, description="Price of a nat of KL (k1) to the reference, in reward units; 0 = no reference is run."
    )

    @model_validator(mode="after")
    def _one_update(self) -> "OneUpdateConfig":
        if self.updates_per_iteration > 1:
            raise ValueError(
                f"epochs {self.epochs} x minibatches {self.minibatches}: after the first update of a round the policy is not the one "
                "that sampled, and this method has no ratio to mend that; use 1 and 1, or ppo"
            )
        return self


class ReinforceConfig(OneUpdateConfig):
    """REINFORCE with a baseline; the KL to the reference is part of the completion's reward."""

    baseline: Literal["none", "batch_mean", "moving_average", "leave_one_out"] = Field(
        default="leave_one_out",
        description="What is subtracted from a completion's reward: nothing, the mean of the round, the moving average of the rounds "
        "before, or the mean of the prompt's other samples (RLOO).",
    )
    baseline_decay: float = Field(
        default=0.9, ge=0, lt=1, description="Weight that a round's mean reward keeps from one round to the next, for moving_average."
    )

    @model_validator(mode="after")
    def _others(self) -> "ReinforceConfig":
        if self.baseline == "leave_one_out" and self.samples_per_prompt < 2:
            raise ValueError("baseline leave_one_out needs the other samples of a prompt: samples_per_prompt must be at least 2")
        return self


class ActorCriticConfig(OneUpdateConfig):
    """Actor-critic: rewards to go less a learned value."""

    discount: float = Field(default=1.0, gt=0, le=1, description="Gamma.")
    value_head: Literal["zero", "reward_model"] = Field(
        default="zero", description="How the critic's head starts where the reward model is the reward: at zero, or as the reward model's."
    )
    value_coefficient: float = Field(default=1.0, gt=0, description="Weight of the critic's loss 1/2 (V - G)^2, mean over tokens.")
    value_optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(learning_rate=5e-6, schedule="constant"), description="Optimiser of the critic."
    )
