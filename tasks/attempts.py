"""Attempts at a new champion, written down: what each was made from, which flow run makes it, and what became of it.

    HOME/retrain/attempts/MODEL/MATERIAL.json

One record for each material (what was new, under which settings). It serves three ends: a flow run that comes back, after a crash or after
a person answered, goes on with the material that it had; what was refused is not tried again until something else is new; and a question
that nobody answered in time is known to be over although no process waited for it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.run import write_atomic
from tasks.home import home

Status = Literal["training", "asked", "promoted", "refused"]


class Attempt(BaseModel):
    """One attempt."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(description="The registered model")
    material: str = Field(description="Digest of what it is made from")
    flow_run: str
    begun: datetime
    status: Status = "training"
    curate: dict[str, Any] = Field(description="The data that are curated, as they were when it began")
    champion: str = Field(description="Digest of the champion then; empty: none")
    candidate: str = Field(default="", description="RUN/POLICY, once it is trained")
    words: str = Field(default="", description="What became of it")
    until: datetime | None = Field(default=None, description="When a question to a person is over")

    @property
    def unanswered(self) -> bool:
        """Whether a person was asked, and the time for an answer is over."""
        return self.status == "asked" and self.until is not None and datetime.now(UTC) > self.until

    @property
    def settled(self) -> bool:
        """Whether it is decided: the same material is not tried again."""
        return self.status in ("promoted", "refused")

    def but(self, **changes: Any) -> Attempt:
        """The attempt with some values changed, on disk when this returns."""
        return keep(self.model_copy(update=changes))


def keep(attempt: Attempt) -> Attempt:
    """Write an attempt down."""
    path = _folder(attempt.model) / f"{attempt.material}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, attempt.model_dump_json(indent=1))
    return attempt


def attempts(model: str) -> list[Attempt]:
    """All attempts at a registered model, the oldest first."""
    found = (Attempt.model_validate_json(path.read_text(encoding="utf-8")) for path in _folder(model).glob("[!.]*.json"))
    return sorted(found, key=lambda attempt: attempt.begun)


def of_material(model: str, material: str) -> Attempt | None:
    """The attempt at a material; None if there was none."""
    return next((attempt for attempt in attempts(model) if attempt.material == material), None)


def of_flow_run(model: str, flow_run: str) -> Attempt | None:
    """The attempt that a flow run made; None if it made none."""
    return next((attempt for attempt in reversed(attempts(model)) if attempt.flow_run == flow_run), None)


def _folder(model: str) -> Path:
    return home() / "retrain" / "attempts" / model
