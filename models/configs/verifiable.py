"""Settings of the suite of prompts with right answers."""

from typing import Literal

from pydantic import Field, model_validator

from data.configs import SourceConfig
from models.configs.base import StageConfig
from models.configs.sampling import SamplingConfig
from models.configs.suites import NAME, NAMED, RESAMPLES, digests

# What curation does with a source and a suite does not.
_OF_CURATION = ("role", "weight", "demonstration", "license", "rows")


class VerifiableConfig(StageConfig):
    """Accuracy and pass@k on prompts whose answers a rule can judge, by task and by difficulty."""

    name: str = Field(default="verifiable", pattern=NAME, description=NAMED)
    ask: Literal["held_out", "source"] = Field(
        default="held_out", description="The prompts that curation held out, or those of a source of the suite's own."
    )
    source: SourceConfig = Field(
        default_factory=SourceConfig, description="The source, for ask = source. Rows may have the columns task and difficulty."
    )
    prompts: int = Field(default=0, ge=0, description="Prompts to use, drawn by the seed; 0 = all.")
    samples: int = Field(default=4, ge=1, le=4096, description="Completions sampled for each prompt.")
    pass_at: list[int] = Field(default=[2, 4], description="pass@k, the chance that one of k samples is right, for each of these k.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How completions are sampled.")
    resamples: int = Field(default=10_000, ge=100, description=RESAMPLES)
    chunk_prompts: int = Field(default=64, ge=1, description="Prompts between two saves.")

    @model_validator(mode="after")
    def _consistent(self) -> "VerifiableConfig":
        wrong = [k for k in self.pass_at if not 1 <= k <= self.samples]
        if wrong or len(set(self.pass_at)) < len(self.pass_at):
            raise ValueError(f"pass_at={self.pass_at} must be different numbers from 1 to samples, which is {self.samples}")
        if self.sampling.temperature == 0 and self.samples > 1:
            raise ValueError(
                f"sampling.temperature 0 is greedy, {self.samples} samples of a prompt would be equal: use samples 1, pass_at []"
            )
        default = SourceConfig()
        meaningless = [name for name in _OF_CURATION if getattr(self.source, name) != getattr(default, name)]
        if meaningless:
            raise ValueError(f"source.{meaningless[0]} says how curation uses a source and means nothing in a suite: leave it out")
        if self.ask == "held_out" and self.source != default:
            raise ValueError("source is given and ask is held_out: use ask source, or leave source out")
        return self

    def cache_extra(self) -> dict[str, str]:
        """SHA-256 of every local file of the source."""
        return digests(self.source)
