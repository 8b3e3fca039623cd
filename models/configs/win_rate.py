"""Settings of the suite that lets a judge compare a policy's answers with others."""

from typing import Literal

from pydantic import Field, model_validator

from models.callables import callable_digest
from models.configs.base import StageConfig
from models.configs.preferences import JudgeConfig
from models.configs.sampling import SamplingConfig
from models.configs.suites import NAME, NAMED, RESAMPLES, PromptsConfig


class WinRateConfig(StageConfig):
    """How often a judge prefers the policy's answer to another answer to the same prompt."""

    name: str = Field(default="win_rate", pattern=NAME, description=NAMED)
    against: Literal["policy", "texts"] = Field(
        default="policy",
        description="policy: the answers of the reference policy that the stage is given. texts: those that the rows themselves hold, such "
        "as the last turn of a demonstration.",
    )
    prompts: PromptsConfig = Field(default_factory=PromptsConfig, description="What is asked.")
    judge: JudgeConfig = Field(
        default_factory=JudgeConfig, description="Who compares: any judge of preference collection but people and datasets."
    )
    sampling: SamplingConfig = Field(
        default_factory=lambda: SamplingConfig(max_tokens=256), description="How both policies answer, with the same seed."
    )
    resamples: int = Field(default=2_000, ge=100, description=RESAMPLES)
    chunk_prompts: int = Field(
        default=64, ge=1, description="Prompts answered, or judged, between two saves. It orders the sampling noise."
    )

    @model_validator(mode="after")
    def _comparable(self) -> "WinRateConfig":
        if self.judge.kind in ("people", "dataset"):
            raise ValueError(f"judge {self.judge.kind!r} knows answers that were labelled before, and these are new: take another judge")
        if self.against == "texts" and self.prompts.kind == "held_out":
            raise ValueError("held-out prompts hold no answers to compare with: name a file or hub set in prompts, or use against = policy")
        return self

    def cache_extra(self) -> dict[str, str]:
        """Digest of the judging function's file."""
        return {"judge": callable_digest(self.judge.callable)} if self.judge.kind == "callable" else {}
