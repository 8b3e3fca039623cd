"""Which model everything starts from."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from data.files import sha256_of
from models.configs.base import StageConfig
from models.precision import resolve_dtype


class ScratchConfig(StageConfig):
    """Sizes of a Llama-shaped model with random weights and a byte tokenizer (kind = scratch)."""

    hidden_size: int = Field(default=128, ge=8, description="Width of the hidden states.")
    intermediate_size: int = Field(default=384, ge=8, description="Width of the feed-forward layer.")
    layers: int = Field(default=4, ge=1, description="Decoder layers.")
    heads: int = Field(default=4, ge=1, description="Query heads; hidden_size must be a multiple.")
    kv_heads: int = Field(default=2, ge=1, description="Key-value heads; heads must be a multiple.")
    max_position: int = Field(default=512, ge=16, description="Longest sequence, in tokens.")

    @model_validator(mode="after")
    def _divisible(self) -> "ScratchConfig":
        if self.hidden_size % (2 * self.heads) or self.heads % self.kv_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} must be a multiple of 2 x heads ({self.heads}), "
                f"and heads a multiple of kv_heads ({self.kv_heads})"
            )
        return self


class BaseModelConfig(StageConfig):
    """A base model by hub id, local folder, packaged name, or made from scratch."""

    kind: Literal["packaged", "folder", "hub", "scratch"] = Field(default="packaged", description="Where the model comes from.")
    name: str = Field(
        default="smollm2-135m-instruct",
        description="Packaged name, path of a folder in transformers' format, or hub id; not read for scratch.",
    )
    revision: str = Field(default="main", description="Branch, tag or commit of a hub model.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Weight type; auto = bfloat16 where the processor computes in it, else float32."
    )
    chat_template: str = Field(
        default="",
        description="Chat template instead of the model's own: path of a .jinja file, or 'chatml' (no default system turn).",
    )
    scratch: ScratchConfig = Field(default_factory=ScratchConfig, description="Sizes for kind = scratch.")

    def cache_extra(self) -> dict[str, str]:
        """What the result depends on beyond the fields: resolved weight type, and the bytes of local files."""
        extra = {"dtype": resolve_dtype(self.dtype)}
        if self.kind == "folder":
            extra["folder"] = folder_digest(Path(self.name))
        if self.chat_template not in ("", "chatml"):
            extra["chat_template"] = hashlib.sha256(Path(self.chat_template).read_bytes()).hexdigest()
        return extra


def folder_digest(folder: Path) -> str:
    """Digest of the names and bytes of all files of a model folder.

    Raises:
        ValueError: the folder does not hold a model.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is not a model folder: it has no config.json. Give the folder that save_pretrained wrote")
    total = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file()):
        total.update(f"{path.name}\0{sha256_of(path)}\n".encode())
    return total.hexdigest()
