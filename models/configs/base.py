"""What every stage configuration shares."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StageConfig(BaseModel):
    """Frozen settings of a stage. Unknown fields are refused; every field says its meaning and unit."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _one_device(cls, values: Any) -> Any:
        if isinstance(values, dict) and "parallel" in values and "parallel" not in cls.model_fields:
            raise ValueError(
                f"parallel {values['parallel']!r}: {cls.__name__} runs on one device. Several ranks train on given data (sft, "
                "rejection_sampling, dpo, kto, kwise_dpo, reward_model, preference_model); stages that sample do not: leave it out"
            )
        return values


def operational(default: Any, description: str, **constraints: Any) -> Any:
    """A field that cannot change the result (how often to save, how much to do at once): left out of the cache key."""
    return Field(default, description=description, json_schema_extra={"cache": False}, **constraints)
