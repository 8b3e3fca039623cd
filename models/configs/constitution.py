"""Principles: what a constitution consists of, and the one that comes with the package."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.sampling import SamplingConfig


class Principle(StageConfig):
    """One principle in the three forms in which it is used (Bai et al. 2022, appendix C: critique, revision, comparison)."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$", description="Short name, as in revisions.jsonl and in judgements.")
    critique: str = Field(min_length=1, description="Asks for what is wrong with the answer before, by this principle.")
    revision: str = Field(min_length=1, description="Asks for the answer to be written anew, in the light of the critique.")
    comparison: str = Field(min_length=1, description="Says which of two answers is the better one by this principle.")


@lru_cache(maxsize=1)
def packaged_constitution() -> tuple[Principle, ...]:
    """The principles that come with the package: helpful, truthful, harmless."""
    rows = json.loads(Path(__file__).with_name("constitution.json").read_text(encoding="utf-8"))
    return tuple(Principle(**row) for row in rows)


def default_principles() -> list[Principle]:
    """A list of them, as configurations hold it."""
    return list(packaged_constitution())


class ReviseConfig(StageConfig):
    """The policy answers, criticises its answer by a principle and writes it anew (Bai et al. 2022, section 3)."""

    prompts: int = Field(default=0, ge=0, description="Prompts to use; 0 = all.")
    rounds: int = Field(default=1, ge=1, le=8, description="Critiques and revisions of each answer, one after another.")
    principles: list[Principle] = Field(
        default_factory=default_principles, min_length=1, description="The constitution; one principle is drawn for each prompt and round."
    )
    train_on: Literal["last", "all"] = Field(
        default="last", description="Which revisions become demonstrations: the last of each prompt, or, as in the paper, all."
    )
    drop_unfinished: bool = Field(
        default=True, description="Leave out revisions cut off at max_tokens: imitating them teaches to stop in the middle of a sentence."
    )
    keep_demonstrations: bool = Field(
        default=False, description="Also pass on the demonstrations of the data, as the paper mixes helpful ones in."
    )
    answer: SamplingConfig = Field(
        default_factory=lambda: SamplingConfig(max_tokens=128), description="How answers and revisions are sampled."
    )
    critique: SamplingConfig = Field(default_factory=lambda: SamplingConfig(max_tokens=128), description="How critiques are sampled.")
    chunk_prompts: int = Field(default=32, ge=1, description="Prompts between two saves. It orders the sampling noise.")
