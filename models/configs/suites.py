"""What the suites of evaluation share in their settings."""

from typing import Literal

from pydantic import Field, model_validator

from data.configs import SourceConfig
from data.files import sha256_of
from models.configs.base import StageConfig

NAME = r"^[a-z0-9][a-z0-9_-]*$"
NAMED = "Name of the suite in tables and metrics; two suites of a flow have different ones."
RESAMPLES = "Bootstrap resamples over items."
ROWS_NAME = "Path of a json, jsonl, csv or parquet file (also .gz, * matches), or hub dataset id."


class SuiteRows(StageConfig):
    """How the rows of a suite are read, wherever they are."""

    columns: dict[str, str] = Field(
        default_factory=dict, description="Column mapping, our name -> the file's (dots reach into nested values), such as question: query."
    )
    subset: str = Field(default="", description="Hub dataset configuration; empty: its default.")
    split: str = Field(default="train", description="Hub dataset split.")
    revision: str = Field(default="", description="Hub dataset commit or tag; empty: its newest. Pin one to make the cache key exact.")
    rows: int = Field(default=0, ge=0, description="Rows to use, drawn by the seed; 0 = all.")

    def read_from(self, kind: Literal["file", "hub"], name: str) -> SourceConfig:
        """The same as data.sources reads it."""
        return SourceConfig(kind=kind, name=name, columns=self.columns, subset=self.subset, split=self.split, revision=self.revision)


class RowsConfig(SuiteRows):
    """The rows that a suite asks about: local files or a hub dataset."""

    kind: Literal["file", "hub"] = Field(default="file", description="Local files, or a Hugging Face hub dataset.")
    name: str = Field(min_length=1, description=ROWS_NAME)

    def source(self) -> SourceConfig:
        """What is read."""
        return self.read_from(self.kind, self.name)

    def cache_extra(self) -> dict[str, str]:
        """SHA-256 of every local file."""
        return digests(self.source())


class PromptsConfig(SuiteRows):
    """The prompts that a suite puts to a policy."""

    kind: Literal["held_out", "file", "hub"] = Field(
        default="held_out", description="The held-out prompts of the curated data, local files, or a Hugging Face hub dataset."
    )
    name: str = Field(default="", description=ROWS_NAME + " Empty for held_out.")

    @model_validator(mode="after")
    def _named(self) -> "PromptsConfig":
        check_name(self.kind, self.name)
        return self

    def cache_extra(self) -> dict[str, str]:
        """SHA-256 of every local file."""
        return {} if self.kind == "held_out" else digests(self.read_from(self.kind, self.name))


def check_name(kind: str, name: str) -> None:
    """Raises ValueError where a name is missing, or is given and would not be read."""
    if (kind in ("file", "hub")) != bool(name):
        raise ValueError(f"kind {kind!r} with name {name!r}: file and hub need the name of what to read, others have none")


def digests(source: SourceConfig) -> dict[str, str]:
    """SHA-256 of every local file of a source; none of another kind."""
    return {path.name: sha256_of(path) for path in source.paths()}
