"""Where the items of a suite of evaluation come from."""

from typing import Literal

from pydantic import Field, model_validator

from data.configs import SourceConfig
from data.files import sha256_of
from models.configs.base import StageConfig


class RowsConfig(StageConfig):
    """Rows of local files or of a hub dataset."""

    name: str = Field(default="", description="Path of a json, jsonl, csv or parquet file (also .gz, * matches), or hub dataset id.")
    columns: dict[str, str] = Field(default_factory=dict, description="Column mapping, our name -> the file's, such as prompt: question.")
    subset: str = Field(default="", description="Hub dataset configuration; empty: its default.")
    split: str = Field(default="train", description="Hub dataset split.")
    revision: str = Field(default="", description="Hub dataset commit or tag; empty: its newest. Pin one to make the cache key exact.")
    rows: int = Field(default=0, ge=0, description="Items to use, from the first on; 0 = all.")

    def of_kind(self, kind: Literal["file", "hub"]) -> SourceConfig:
        """The same as a source of curation, which knows how to read it."""
        return SourceConfig(
            kind=kind, name=self.name, columns=self.columns, subset=self.subset, split=self.split, revision=self.revision, rows=self.rows
        )


def check_name(source: str, name: str) -> None:
    """Raises ValueError where a name is missing, or is given and would not be read."""
    if (source in ("file", "hub")) != bool(name):
        raise ValueError(f"source {source!r} with name {name!r}: file and hub need the name of what to read, others have none")


def digests(rows: RowsConfig, source: str) -> dict[str, str]:
    """SHA-256 of every local file named: a byte of one changes the stage's key."""
    return {path.name: sha256_of(path) for path in rows.of_kind("file").paths()} if source == "file" else {}


class PromptsConfig(RowsConfig):
    """The prompts that a suite puts to a policy."""

    source: Literal["held_out", "file", "hub"] = Field(
        default="held_out", description="The held-out prompts of the curated data, local files, or a Hugging Face hub dataset."
    )

    @model_validator(mode="after")
    def _named(self) -> "PromptsConfig":
        check_name(self.source, self.name)
        return self

    def cache_extra(self) -> dict[str, str]:
        """Digests of the files."""
        return digests(self, self.source)
