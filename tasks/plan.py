"""Planning: what a flow would do, found by running its body with stages that compute nothing.

with planning() as plan:
    flow.fn(config)
for entry in plan.entries: ...
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from tasks.store import Artifact


@dataclass(frozen=True)
class Pending:
    """Stands for an artifact that a planned run would compute first."""

    stage: str
    label: str
    kind: str
    digest: None = None
    size_bytes: int = 0
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PlanEntry:
    """What would become of one call of a stage."""

    label: str
    stage: str
    outcome: Literal["hit", "miss"]
    key: str | None
    reason: str
    config: BaseModel
    inputs: Mapping[str, Any]
    artifact: Artifact | None = None


@dataclass
class Plan:
    """The calls of a planned run, in order."""

    entries: list[PlanEntry] = field(default_factory=list)


_plan: ContextVar[Plan | None] = ContextVar("plan", default=None)


@contextmanager
def planning() -> Iterator[Plan]:
    """Inside, calling a stage computes nothing: it returns the cached artifact or a `Pending`, and notes which."""
    plan = Plan()
    token = _plan.set(plan)
    try:
        yield plan
    finally:
        _plan.reset(token)


def current_plan() -> Plan | None:
    """The plan that stages are to write to instead of running."""
    return _plan.get()
