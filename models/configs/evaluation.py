"""Settings of evaluation and comparison."""

from typing import Literal

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.sampling import SamplingConfig


class EvaluateConfig(StageConfig):
    """Judge a policy on held-out prompts, the same for every policy."""

    judge: Literal["verifier", "reward_model"] = Field(
        default="verifier",
        description="Who scores answers: the prompts' own verifier, or the reward model, for data without right answers.",
    )
    prompts: int = Field(default=0, ge=0, description="Held-out prompts to use; 0 = all.")
    samples_per_prompt: int = Field(default=1, ge=1, description="Completions sampled for each prompt.")
    sampling: SamplingConfig = Field(
        default_factory=SamplingConfig, description="How they are sampled; at temperature 1 the KL estimate is unbiased."
    )
    greedy: bool = Field(default=True, description="Also answer each prompt with the most likely tokens.")
    chunk_prompts: int = Field(default=128, ge=1, description="Prompts between two saves.")
    micro_batch_tokens: int = Field(default=8192, ge=16, description="Tokens of a forward pass.")


class ComparisonConfig(StageConfig):
    """The table at the end of a flow."""

    baseline: str = Field(default="sft", description="Policy that the others are compared with.")
    primary: Literal["accuracy", "accuracy_greedy"] = Field(
        default="accuracy", description="The accuracy in the table's first column: of sampled completions, or of greedy ones."
    )
    resamples: int = Field(default=10_000, ge=100, description="Bootstrap resamples over prompts.")
