"""Settings of rejection-sampling fine-tuning."""

from typing import Literal

from pydantic import Field

from models.configs.sft import SFTConfig


class RejectionSamplingConfig(SFTConfig):
    """Fine-tuning on the best of several sampled completions."""

    select: Literal["top_per_prompt", "top_k_overall", "random"] = Field(
        default="top_per_prompt",
        description="Keep the best completion of each prompt, or the best of all (which favours easy prompts); or, as a control for "
        "top_per_prompt, one completion at random of each prompt that it would keep.",
    )
    keep: int = Field(default=0, ge=0, description="How many completions to keep in all, the best first; 0 = one a prompt.")
    score: Literal["reward_model", "judge"] = Field(
        default="reward_model", description="Who ranks the completions: the trained reward model, or the judge of the preference stage."
    )
    min_score: float = Field(default=-1e6, description="Completions scored lower are not kept; the default keeps any.")
