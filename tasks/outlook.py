"""Where a run stands among the stages that it is planned to call, and how long the rest of it takes.

    with following("rlhf") as view:     # in a flow's body; tasks/tracking.py does it
        ...                             # a stage asks: outlook.current()

The plan is made once, when the run begins, by running the flow's body with stages that compute nothing (tasks/plan.py). Time is said only
where it is known: the stage that runs by its own pace, each one that is still to be computed by what it cost in the last finished run of
the same settings, as long as what this run has made so far is as large as it was then.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from models.spending import read_cost
from tasks import registry
from tasks.home import home
from tasks.key import explain_miss
from tasks.plan import PlanEntry, current_plan, planning
from tasks.reasons import Cause, cause_of
from tasks.registry import Outcome, RunRecord, StageRecord
from tasks.store import Artifact
from tasks.wording import about

SAME_SIZE = 0.1  # by how much an artifact may differ in size from that of the run whose times are used

log = logging.getLogger(__name__)

_expected: contextvars.ContextVar[Sequence[PlanEntry] | None] = contextvars.ContextVar("expected", default=None)
_current: contextvars.ContextVar[Outlook | None] = contextvars.ContextVar("outlook", default=None)


class Outlook:
    """One run, as far as it is known what it will do. Asked by several threads, changed by those of its stages."""

    def __init__(self, planned: Sequence[PlanEntry], earlier: Sequence[RunRecord], live: RunRecord | None) -> None:
        self.planned = {entry.label: entry for entry in planned}
        self.earlier = earlier  # runs, the oldest first
        self.outcomes: dict[str, str] = {}  # by label, of the stages that have ended
        self._begun: dict[str, float] = {}
        self._began = time.monotonic()
        self._is_planned = bool(planned) and len(self.planned) == len(planned)
        self._last = _like(live, earlier) if live is not None else None
        self._costs = _costs(self._last, self.planned) if self._last else {}
        self._is_alike = True

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._began

    def begin(self, label: str) -> None:
        """A stage is called."""
        self._begun.setdefault(label, time.monotonic())
        self._is_planned = self._is_planned and label in self.planned

    def end(self, label: str, outcome: str, size_bytes: int = 0) -> None:
        """A stage has ended."""
        self.outcomes[label] = outcome
        stage = self._last.stages.get(label) if self._last else None
        then = stage.artifact.size_bytes if stage and stage.artifact else 0
        if size_bytes and abs(size_bytes - then) > SAME_SIZE * size_bytes:
            self._is_alike = False

    @property
    def total(self) -> int:
        """Stages planned; 0 where the plan is not known, or the run left it."""
        return len(self.planned) if self._is_planned else 0

    @property
    def percent(self) -> float:
        """Share of the planned stages that have ended."""
        return 100 * len(self.outcomes) / len(self.planned) if self.planned else 0.0

    @property
    def done(self) -> str:
        """`3 of 9 stages done`."""
        return f"{len(self.outcomes)} of {len(self.planned)} stages done"

    def place(self, label: str) -> str:
        """`stage 4 of 9`; empty where the plan is not known."""
        if not self._is_planned or label not in self._begun:
            return ""
        return f"stage {list(self._begun).index(label) + 1} of {self.total}"

    def left_s(self, label: str, stage_left_s: float | None) -> float | None:
        """Time left of the whole run while a stage of it is running; None where a part of it is not known."""
        if not self._is_planned or not self._is_alike:
            return None
        running_s = stage_left_s if stage_left_s is not None else self._rest_s(label)
        others = [one for one, entry in self.planned.items() if entry.outcome == "miss" and one not in self._begun]
        parts = [running_s, *(self._costs.get(one) for one in others)]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) and len(self._begun) - len(self.outcomes) <= 1 else None

    def _rest_s(self, label: str) -> float | None:
        cost_s = self._costs.get(label)
        spent_s = time.monotonic() - self._begun.get(label, time.monotonic())
        return cost_s - spent_s if cost_s is not None and cost_s > spent_s else None

    def in_words(self, label: str, stage_left_s: float | None) -> str:
        """`stage 4 of 9, about 3 h left of the run`, as far as it is known."""
        left_s = self.left_s(label, stage_left_s)
        left = [f"{about(left_s)} left of the run"] if left_s is not None else []
        return ", ".join([*filter(None, [self.place(label)]), *left])


def current() -> Outlook | None:
    """The outlook of the run that the caller is part of."""
    return _current.get()


def begin(label: str) -> None:
    """A stage of the current run is called."""
    if (view := _current.get()) is not None:
        view.begin(label)


def end(label: str, outcome: Outcome, artifact: Artifact | None) -> None:
    """A stage of the current run has ended."""
    if (view := _current.get()) is not None:
        view.end(label, outcome, artifact.size_bytes if artifact else 0)


@contextlib.contextmanager
def expecting(planned: Sequence[PlanEntry]) -> Iterator[None]:
    """Inside, a run that begins is known to call these stages, and need not be planned again."""
    token = _expected.set(planned)
    try:
        yield
    finally:
        _expected.reset(token)


def earlier_runs() -> list[RunRecord]:
    """The runs before the current one, the oldest first; none outside of a run."""
    live = registry.current_run()
    return [run for run in registry.runs() if run.started < live.record.started] if live is not None else []


def cause_now(label: str, key: str, document: Mapping[str, Any], outcome: Outcome) -> Cause:
    """Why the current run finds a stage in the store, or not; outside of a run, what is different from the most similar earlier call."""
    store, live = home() / "store", registry.current_run()
    if live is not None:
        view, stage = _current.get(), StageRecord(key=key, artifact=None, outcome=outcome, seconds=0.0)
        earlier = view.earlier if view is not None else earlier_runs()
        return cause_of(label, stage, live.record.recipe, earlier, store / "keydocs")
    if outcome == "hit":
        return Cause("stored")
    if (store / "records" / "keys" / key).exists():
        return Cause("lost")
    changes = explain_miss(store / "keydocs", key, document)
    return Cause("changed", changes=changes) if changes else Cause("first")


@contextlib.contextmanager
def following(name: str) -> Iterator[Outlook | None]:
    """The outlook of a run that begins; None inside another that is followed, whose stages these are, and in a plan."""
    if _current.get() is not None or current_plan() is not None:
        yield None
        return
    view = _outlook(name)
    token = _current.set(view)
    try:
        yield view
    finally:
        _current.reset(token)


def _outlook(name: str) -> Outlook:
    live = registry.current_run()
    planned = _expected.get()
    return Outlook(_planned(name) if planned is None else planned, earlier_runs(), live.record if live else None)


def _planned(name: str) -> Sequence[PlanEntry]:
    """What the flow whose body is running will call; nothing where that cannot be told beforehand."""
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow.isasync or context.flow.isgenerator:
        return []
    try:
        with registry.rehearsal(name), planning() as plan:
            context.flow.fn(**(context.parameters or {}))
    except Exception as error:  # a flow of the user's own may need real artifacts between its stages
        log.debug("%s is not planned: %s", name, error)
        return []
    return plan.entries


def _like(live: RunRecord, earlier: Sequence[RunRecord]) -> RunRecord | None:
    """The last finished run with the same settings, but for the seed."""
    runs = (run for run in reversed(earlier) if run.recipe == live.recipe and run.status == "finished")
    return next((run for run in runs if _without_seed(run.config) == _without_seed(live.config)), None)


def _without_seed(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name != "seed"}


def _costs(run: RunRecord, planned: dict[str, PlanEntry]) -> dict[str, float]:
    """Seconds that the stages of a run took to compute, by label."""
    found = {label: _cost_s(stage) for label, stage in run.stages.items() if label in planned}
    return {label: seconds for label, seconds in found.items() if seconds is not None}


def _cost_s(stage: StageRecord) -> float | None:
    cost = read_cost(home() / "store" / "costs" / f"{stage.key}.json")
    return float(cost["seconds"]) if cost is not None else None
