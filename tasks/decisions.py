"""Decisions on champions, written down for good: one file each, refusals too, none ever changed.

    HOME/decisions/20261121T210455123456Z-3f9a2c1b.json          what was decided, with every number
    HOME/decisions/20261121T210455123456Z-3f9a2c1b.moved.json    that the alias was moved because of it: from which version to which
    HOME/decisions/NAME.lock                               held while the alias of that name may be moved
"""

from __future__ import annotations

import getpass
import os
import re
import socket
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.run import write_atomic
from tasks.home import home

Action = Literal["promote", "rollback"]

_ID = re.compile(r"\d{8}T\d{12}Z-[0-9a-f]{8}")


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class DecisionRecord(_Written):
    """One decision. Versions are those of the registered model; 0 where there is none."""

    id: str
    at: datetime
    action: Action
    name: str = Field(description="The registered model")
    accepted: bool
    candidate: str = Field(description="RUN/POLICY, or the version")
    digest: str = Field(description="Digest of the candidate's artifact")
    opponent: str = Field(description="What it was compared with, in words")
    opponent_digest: str
    champion: int = Field(description="Version that was champion when this was decided")
    reasons: list[str] = Field(description="Why it was refused")
    checks: list[dict[str, Any]]
    gate: dict[str, Any]
    by: str


class MoveRecord(_Written):
    """The alias was moved."""

    id: str
    at: datetime
    before: int
    after: int


def folder() -> Path:
    """Where the decisions lie."""
    return home() / "decisions"


def new_id(now: datetime) -> str:
    """A name for a decision; names sort by time."""
    return f"{now:%Y%m%dT%H%M%S%fZ}-{uuid.uuid4().hex[:8]}"


def decision(action: Action, name: str, **fields: Any) -> DecisionRecord:
    """A decision of now, by this user on this machine."""
    now = datetime.now(UTC)
    return DecisionRecord(id=new_id(now), at=now, action=action, name=name, by=_user(), **fields)


def write(record: DecisionRecord) -> Path:
    """Keep a decision; on disk when this returns."""
    return _keep(folder() / f"{record.id}.json", record)


def write_move(record: DecisionRecord, before: int, after: int) -> Path:
    """Keep that a decision was carried out. A second call leaves the first word."""
    return _keep(folder() / f"{record.id}.moved.json", MoveRecord(id=record.id, at=datetime.now(UTC), before=before, after=after))


def _keep(path: Path, record: BaseModel) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        write_atomic(path, record.model_dump_json(indent=1))
    return path


def decisions(name: str | None = None) -> list[DecisionRecord]:
    """All decisions, or those on one model, the oldest first; what cannot be read is left out."""
    paths = sorted(path for path in folder().glob("*.json") if _ID.fullmatch(path.stem))
    records = [_read(path, DecisionRecord) for path in paths]
    return [record for record in records if isinstance(record, DecisionRecord) and name in (None, record.name)]


def move_of(decision_id: str) -> MoveRecord | None:
    """How a decision was carried out; None if it was not."""
    record = _read(folder() / f"{decision_id}.moved.json", MoveRecord)
    return record if isinstance(record, MoveRecord) else None


def kept_digests() -> set[str]:
    """Artifacts of accepted candidates: a rollback may want them back, so nothing may remove them."""
    return {record.digest for record in decisions() if record.accepted}


def _read(path: Path, form: type[BaseModel]) -> BaseModel | None:
    try:
        return form.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user id
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
