"""Settings of measuring a judge against people."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.files import sha256_of
from data.judge_sets import judge_set_files
from models.configs.ai_judge import AIJudgeConfig
from models.configs.base import StageConfig


class JudgeSetConfig(StageConfig):
    """Pairs of answers that people compared."""

    kind: Literal["pandalm", "llmbar"] = Field(description="Which published set.")
    path: str = Field(min_length=1, description="Its JSON file, or the folder that holds its files.")
    rows: int = Field(default=0, ge=0, description="Pairs to use, drawn by the seed from all files alike; 0 = all.")

    def cache_extra(self) -> dict[str, str]:
        """Digests of the files."""
        return {subset: sha256_of(file) for subset, file in judge_set_files(Path(self.path)).items()}


class JudgeAccuracyConfig(StageConfig):
    """How often a judge agrees with people, and what it likes beside quality."""

    sets: list[JudgeSetConfig] = Field(min_length=1, description="What it is measured on.")
    judge: AIJudgeConfig = Field(default_factory=AIJudgeConfig, description="The judge that is measured.")
    resamples: int = Field(default=2_000, ge=100, description="Bootstrap resamples over pairs.")
    chunk_pairs: int = Field(default=16, ge=1, description="Pairs between two saves.")
