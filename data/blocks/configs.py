"""What a user may set about a block of curation."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

from data.blocks.registry import BlockKind, load, place_of


class BlockConfig(BaseModel):
    """One block of a curation recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: BlockKind = Field(description="What the block does: one that cleans, filters, removes duplicates or decontaminates.")
    settings: dict[str, Any] = Field(
        default_factory=dict, validate_default=True, description="The block's own settings; those left out have the block's defaults."
    )

    @field_validator("settings")
    @classmethod
    def _checked(cls, settings: dict[str, Any], known: ValidationInfo) -> dict[str, Any]:
        """With every default written out, so that a changed default changes the stage's key."""
        if "kind" not in known.data:  # the kind is the fault, and is told
            return settings
        return load(place_of(known.data["kind"]), settings)[1].model_dump(mode="json")

    def paths(self) -> list[Path]:
        """Local files that the settings name. Raises FileNotFoundError where one is missing."""
        found = load(place_of(self.kind), self.settings)[1].paths()
        for path in found:
            if not path.is_file():
                raise FileNotFoundError(f"no file {str(path)!r}, which the settings of the block {self.kind} name")
        return found
