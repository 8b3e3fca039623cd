"""Settings of online direct preference optimisation."""

from pydantic import Field

from models.configs.dpo import PairLossConfig
from models.configs.optimisation import OptimConfig
from models.configs.policy_gradient import PolicyGradientConfig
from models.configs.rewards import RewardSource


class OnlineDPOConfig(PolicyGradientConfig):
    """DPO on pairs of the policy's own fresh completions: of each prompt the best against the worst."""

    reward: RewardSource = Field(default="reward_model", description="Who scores completions; weighted = the sum of rewards.")
    samples_per_prompt: int = Field(default=4, ge=2, description="Completions of each prompt; the best and the worst make the pair.")
    preference: PairLossConfig = Field(default_factory=PairLossConfig, description="How a pair becomes a loss.")
    optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(learning_rate=1e-6, schedule="constant"), description="Optimiser of the policy."
    )
