"""Settings of GRPO."""

from pydantic import Field, model_validator

from models.configs.policy_gradient import ClippedConfig
from models.configs.rewards import RewardSource


class GRPOConfig(ClippedConfig):
    """Group-relative policy optimisation: a completion's advantage is its reward against its siblings'."""

    reward: RewardSource = Field(default="verifier", description="Who scores completions; weighted = the sum of rewards.")
    samples_per_prompt: int = Field(default=8, ge=2, description="Completions of each prompt, compared with each other.")
    kl_coefficient: float = Field(
        default=0.02, ge=0, description="Weight of the KL to the reference (k3 estimate) in the loss; 0 = no reference is run."
    )

    @model_validator(mode="after")
    def _group(self) -> "GRPOConfig":
        if self.samples_per_prompt < 2:
            raise ValueError(f"samples_per_prompt {self.samples_per_prompt}: a group of one has no spread; use at least 2")
        return self
