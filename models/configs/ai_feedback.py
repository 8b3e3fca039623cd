"""Settings of preferences that an AI judge gives."""

from pydantic import Field

from models.configs.ai_judge import AIJudgeConfig
from models.configs.base import StageConfig
from models.configs.constitution import default_principles
from models.configs.sampling import SamplingConfig


class AIFeedbackConfig(StageConfig):
    """Sample several completions a prompt, let an AI judge compare them, keep the pairs that it decides."""

    prompts: int = Field(default=0, ge=0, description="Prompts to use; 0 = all.")
    samples_per_prompt: int = Field(default=2, ge=2, le=16, description="Completions of each prompt, all of which are compared.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How completions are sampled.")
    judge: AIJudgeConfig = Field(
        default_factory=lambda: AIJudgeConfig(principles=default_principles()), description="Who compares them, and by what."
    )
    pairs_per_prompt: int = Field(default=1, ge=1, description="Pairs made from a prompt's completions, the widest gaps first.")
    test_share: float = Field(default=0.1, ge=0, lt=1, description="Share of the prompts whose pairs are held out.")
    chunk_prompts: int = Field(default=32, ge=1, description="Prompts between two saves.")
