"""Settings of Nash mirror descent."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.policy_gradient import ClippedConfig


class NashMDConfig(ClippedConfig):
    """Nash-MD: win against a mixture of oneself and the reference, tied to the reference by a KL."""

    reward: Literal["reward_model", "verifier", "preference_model"] = Field(  # type: ignore[assignment]
        default="reward_model",
        description="Who says which of two completions wins: the reward model (Bradley-Terry), the verifier, or a preference model.",
    )
    kl_coefficient: float = Field(default=0.02, ge=0, description="Tau: price of a nat of KL to the reference, in probability of winning.")
    mixture_share: float = Field(
        default=0.125, ge=0, le=1, description="Share of the reference in the opponent, which is a geometric mixture: 0 = self-play."
    )
    reference_sync_every: int = Field(
        default=0, ge=0, description="Rounds after which the reference moves towards the policy, again and again; 0 = never."
    )
    reference_sync_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="How far it moves: share of the policy's weights in the new reference. 1 = a copy, less = an average of past policies.",
    )

    @model_validator(mode="after")
    def _sync(self) -> "NashMDConfig":
        if self.reference_sync_share < 1 and not self.reference_sync_every:
            raise ValueError(f"reference_sync_share {self.reference_sync_share} without reference_sync_every: say after how many rounds")
        if self.reference_sync_every and self.lora.rank:
            raise ValueError(
                f"reference_sync_every {self.reference_sync_every} with lora.rank {self.lora.rank}: the reference has no adapters "
                "that could follow; set one of the two to 0"
            )
        return self
