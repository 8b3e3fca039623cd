"""Slots of a schedule: a durable record for each (deployment, scheduled time), so that none is worked on by two runs.

    HOME/schedule/NAME/20261122T020000Z.json     which flow run has the slot

The record appears whole and once, by link(2), which fails if the name is there: of two workers, also of two Prefect servers that share the
output folder, one gets the slot. The flow run that has it may come back: a retry after a crash is the same flow run.
"""

from __future__ import annotations

import os
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from models.run import write_atomic
from tasks.home import home


class Slot(BaseModel):
    """Who has a slot."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: str
    at: datetime
    flow_run: str
    claimed: datetime


def folder(deployment: str) -> Path:
    """Where the slots of a deployment lie."""
    return home() / "schedule" / re.sub(r"[^\w.-]", "_", deployment)


def claim(deployment: str, at: datetime, flow_run: str) -> Slot:
    """The record of a slot: of this flow run if nobody had it, else of whoever has it."""
    own = Slot(deployment=deployment, at=at.astimezone(UTC), flow_run=flow_run, claimed=datetime.now(UTC))
    path = _path(deployment, at)
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_name(f".{uuid.uuid4().hex}")
    write_atomic(written, own.model_dump_json(indent=1))
    try:
        os.link(written, path)
    except FileExistsError:
        return Slot.model_validate_json(path.read_text(encoding="utf-8"))
    finally:
        written.unlink()
    return own


def holder(deployment: str, at: datetime) -> Slot | None:
    """Who has a slot; None if nobody."""
    path = _path(deployment, at)
    return Slot.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


def newest(deployment: str) -> Slot | None:
    """The latest slot that anybody has had; None before the first."""
    paths = sorted(folder(deployment).glob("[!.]*.json"))
    return Slot.model_validate_json(paths[-1].read_text(encoding="utf-8")) if paths else None


def _path(deployment: str, at: datetime) -> Path:
    return folder(deployment) / f"{at.astimezone(UTC):%Y%m%dT%H%M%SZ}.json"
