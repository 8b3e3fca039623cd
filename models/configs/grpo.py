"""Settings of GRPO and its variants."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.policy_gradient import ClippedConfig
from models.configs.rewards import RewardSource


class GRPOConfig(ClippedConfig):
    """Group-relative policy optimisation: a completion's advantage is its reward against its siblings'."""

    loss: Literal["grpo", "dr_grpo", "dapo", "bnpo", "gspo", "cispo"] = Field(
        default="grpo", description="How ratios are bounded and what the loss is divided by: the table in models/losses/grpo.py."
    )
    reward: RewardSource = Field(default="verifier", description="Who scores completions; weighted = the sum of rewards.")
    samples_per_prompt: int = Field(default=8, ge=2, description="Completions of each prompt, compared with each other.")
    clip_high: float = Field(
        default=0.0, ge=0, description="Ratios above 1 + this earn nothing more; 0 = the same as clip. DAPO takes 0.28 beside 0.2."
    )
    kl_coefficient: float = Field(default=0.02, ge=0, description="Weight of the KL to the reference; 0 = no reference is run.")
    kl_in: Literal["loss", "reward"] = Field(
        default="loss", description="Where the KL stands: differentiated in the loss, or subtracted from a completion's reward."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field(
        default="k3", description="How it is estimated from sampled tokens. In the reward, k1 is the one with the gradient of the KL."
    )
    dynamic_sampling_rounds: int = Field(
        default=0, ge=0, description="How often further prompts are sampled in place of those whose samples all score the same; 0 = never."
    )
    overlong_buffer_tokens: int = Field(
        default=0, ge=0, description="Reward falls linearly over this many tokens before the longest completion allowed; 0 = it does not."
    )
    overlong_penalty: float = Field(default=1.0, gt=0, description="By how much it has fallen at the longest, in reward units.")
    importance_cap: float = Field(
        default=0.0, ge=0, description="Tokens are weighed by the trainer's probability over the sampler's, at most this; 0 = they are not."
    )

    @model_validator(mode="after")
    def _group(self) -> "GRPOConfig":
        if self.samples_per_prompt < 2:
            raise ValueError(f"samples_per_prompt {self.samples_per_prompt}: a group of one has no spread; use at least 2")
        return self

    @model_validator(mode="after")
    def _sensible(self) -> "GRPOConfig":
        if self.kl_in == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator k1 in the loss has a gradient of 0 on average and ties nothing: use k2 or k3, or kl_in reward")
        if self.overlong_buffer_tokens >= self.sampling.max_tokens:
            raise ValueError(
                f"overlong_buffer_tokens {self.overlong_buffer_tokens} must be less than sampling.max_tokens {self.sampling.max_tokens}"
            )
        return self
