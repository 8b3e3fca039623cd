"""Settings of preference collection."""

from typing import Literal

from pydantic import Field

from models.callables import callable_digest
from models.configs.base import StageConfig
from models.configs.sampling import SamplingConfig


class PreferencesConfig(StageConfig):
    """Sample several completions a prompt, let a judge score them, pair better with worse."""

    prompts: int = Field(default=0, ge=0, description="Prompts to use; 0 = all.")
    samples_per_prompt: int = Field(default=4, ge=2, description="Completions of each prompt.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How completions are sampled.")
    judge: Literal["verifier", "callable"] = Field(
        default="verifier", description="Who scores completions: the prompt's own verifier, or a Python function."
    )
    judge_callable: str = Field(
        default="",
        description="module:function taking (data.records.Prompt, completion text) and returning a number; for judge = callable.",
    )
    pairs_per_prompt: int = Field(default=1, ge=1, description="Pairs made from a prompt's completions, the widest gaps first.")
    min_gap: float = Field(default=0.0, ge=0, description="Pairs whose scores differ by this or less are ties and make no pair.")
    label_threshold: float = Field(
        default=0.5, description="Completions scored at least this are labelled desirable (for KTO), the others undesirable; a score."
    )
    test_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the prompts whose pairs are held out, to measure the reward model."
    )
    chunk_prompts: int = Field(default=64, ge=1, description="Prompts sampled between two saves.")

    def cache_extra(self) -> dict[str, str]:
        """Digest of the judging function's file."""
        return {"judge_callable": callable_digest(self.judge_callable)} if self.judge == "callable" else {}
