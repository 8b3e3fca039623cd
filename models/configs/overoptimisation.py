"""Settings of the over-optimisation curve."""

from typing import Any, Literal

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.rewards import RewardSource, ScoredConfig
from models.configs.sampling import SamplingConfig


class OveroptimisationConfig(ScoredConfig):
    """What the reward trained on, a held-out reward and the verifier say along the way of a policy that kept snapshots."""

    reward: RewardSource = Field(
        default="reward_model", description="The reward that the policy was trained on; weighted = the sum of rewards. As in the training."
    )
    prompts: int = Field(default=0, ge=0, description="Held-out prompts to use; 0 = all.")
    samples_per_prompt: int = Field(default=1, ge=1, description="Completions that each snapshot samples for each prompt.")
    sampling: SamplingConfig = Field(
        default_factory=SamplingConfig, description="How they are sampled; at temperature 1 the KL estimate is unbiased."
    )
    form: Literal["reinforcement", "best_of_n"] = Field(
        default="reinforcement",
        description="Curve that is fitted, with d = sqrt(KL): d (alpha - beta log d), or d (alpha - beta d) for a policy that imitates the "
        "best of n samples.",
    )
    resamples: int = Field(default=10_000, ge=1000, description="Bootstrap resamples over prompts.")
    chunk_prompts: int = Field(default=128, ge=1, description="Prompts between two saves.")
    micro_batch_tokens: int = Field(default=8192, ge=16, description="Tokens of a forward pass.")

    def trained_on(self, training: StageConfig) -> "OveroptimisationConfig":
        """The same with the reward of a training stage's settings, where that names one.

        Raises:
            ValueError: that reward gives single completions no score, as a preference model.
        """
        named: dict[str, Any] = {name: getattr(training, name) for name in ("reward", "rewards") if hasattr(training, name)}
        return OveroptimisationConfig.model_validate({**dict(self), **named})
