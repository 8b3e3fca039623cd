"""Settings of the suite of instructions that a rule can check."""

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.sampling import SamplingConfig
from models.configs.suites import NAME, NAMED, RESAMPLES, RowsConfig


class InstructionsConfig(StageConfig):
    """How often a policy keeps to instructions about form, length, language and words, in the manner of IFEval."""

    name: str = Field(default="instructions", pattern=NAME, description=NAMED)
    source: RowsConfig = Field(
        description="Rows in IFEval's form: key, prompt, instruction_id_list, kwargs. On the hub: google/IFEval, split train."
    )
    sampling: SamplingConfig = Field(
        default_factory=lambda: SamplingConfig(temperature=0.0, max_tokens=1280),
        description="How the one answer to each prompt is sampled. Published: greedy, 1280 tokens.",
    )
    resamples: int = Field(default=10_000, ge=100, description=RESAMPLES)
    chunk_prompts: int = Field(default=64, ge=1, description="Prompts between two saves.")
