"""What every stage configuration shares."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class StageConfig(BaseModel):
    """Frozen settings of a stage. Unknown fields are refused; every field says its meaning and unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def operational(default: Any, description: str, **constraints: Any) -> Any:
    """A field that cannot change the result (how often to save, how much to do at once): left out of the cache key."""
    return Field(default, description=description, json_schema_extra={"cache": False}, **constraints)
