"""What the suites of evaluation share in their settings."""

from typing import Literal

from pydantic import Field

from data.configs import SourceConfig
from data.files import sha256_of
from models.configs.base import StageConfig

NAME = r"^[a-z0-9][a-z0-9_-]*$"
NAMED = "Name of the suite in tables and metrics; two suites of a flow have different ones."
RESAMPLES = "Bootstrap resamples over items."


class RowsConfig(StageConfig):
    """The rows that a suite asks about: local files or a hub dataset."""

    kind: Literal["file", "hub"] = Field(default="file", description="Local files, or a Hugging Face hub dataset.")
    name: str = Field(min_length=1, description="Path of a json, jsonl, csv or parquet file (also .gz, * matches), or hub dataset id.")
    columns: dict[str, str] = Field(
        default_factory=dict, description="Column mapping, our name -> the file's (dots reach into nested values), such as question: query."
    )
    subset: str = Field(default="", description="Hub dataset configuration; empty: its default.")
    split: str = Field(default="train", description="Hub dataset split.")
    revision: str = Field(default="", description="Hub dataset commit or tag; empty: its newest. Pin one to make the cache key exact.")
    rows: int = Field(default=0, ge=0, description="Rows to use, drawn by the seed; 0 = all.")

    def source(self) -> SourceConfig:
        """The same as data.sources reads it."""
        return SourceConfig(
            kind=self.kind, name=self.name, columns=self.columns, subset=self.subset, split=self.split, revision=self.revision
        )

    def cache_extra(self) -> dict[str, str]:
        """SHA-256 of every local file."""
        return digests(self.source())


def digests(source: SourceConfig) -> dict[str, str]:
    """SHA-256 of every local file of a source; none of another kind."""
    return {path.name: sha256_of(path) for path in source.paths()}
