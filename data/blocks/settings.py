"""What every curation block's settings share, and which part of a row a block judges. Pydantic only."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from data.files import files_near

Scope = Literal["document", "answers", "imitated"]
SCOPE = (
    "What of a row is judged. document: all turns and answers as one text; answers: every answer by itself; imitated: only the answer to "
    "imitate (the completion, the chosen one, the best ranked)."
)


class BlockSettings(BaseModel):
    """Frozen settings of a block. Unknown fields are refused; every field says its meaning and unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def paths(self) -> list[Path]:
        """The local files that the block reads: their content belongs to the cache key."""
        return []


def existing_file(name: str, field: str) -> Path:
    """The file a setting names. Raises FileNotFoundError with the field and the files that are near."""
    path = Path(name).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"{field}={name!r} is no file{files_near(path)}")
    return path
