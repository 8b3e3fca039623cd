"""Flow runs whose process died: Prefect goes on calling them Running, for ever if their worker died too. This tells it, and cleans up.

Only a process that has certainly ended counts (`tasks.claims`): a run that is slow, silent, paused, suspended or on another machine is
left alone. What always runs watches (`posttrain ui`, `posttrain serve`, `posttrain watch`), and every run looks once when it starts.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from models.marked import kill_marked, marked
from models.zygote import GRACE_S
from tasks import claims, provenance
from tasks.cancellation import obey_cancel
from tasks.claims import Claim
from tasks.locks import is_free, try_lock

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import FlowRun

log = logging.getLogger(__name__)

EVERY_S = 10.0
SETTLE_S = 60.0  # with a run that has changed its state since its dead process claimed it: another one may be starting
KILL_AFTER_S = GRACE_S + 5.0  # a stage whose flow died saves, and its zygote kills it, before this
FORGET_S = 30 * 24 * 3600.0  # a claim of a run that this server does not know
WHY = "Its process ended without saying so: it was killed, or its machine went down. Run it again: finished stages are kept."


def begin() -> None:
    """At the start of a flow: say that this process runs it and stops when it is cancelled, and look once for those that died."""
    run = provenance.flow_run()
    if run is None:
        return
    claims.claim()
    obey_cancel(run)
    try:
        sweep()
    except (httpx.HTTPError, OSError) as error:
        log.warning("Runs of killed processes were not looked for: %s", error)


def watch_runs(
    stop: threading.Event, *, api: str | None = None, every_s: float = EVERY_S, tell: Callable[[str], None] = log.warning
) -> None:
    """Look for runs whose process died until `stop` is set, and call `tell` with a line about each. To be run in a thread.

    api: URL of Prefect's API, if not that of this process.
    """
    from tasks import tracking  # which calls `begin`

    is_away = False
    with _talking_to(api):
        while not stop.is_set():
            try:
                lines = sweep()
                if lines:
                    tracking.sweep()
                for line in lines:
                    tell(line)
                is_away = False
            except (httpx.HTTPError, OSError) as error:
                if not is_away:
                    log.warning("Runs of killed processes are not looked for while Prefect's server is away: %s", error)
                is_away = True
            stop.wait(every_s)


@contextlib.contextmanager
def _talking_to(api: str | None) -> Iterator[None]:
    if api is None:
        yield
        return
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api}):
        yield


def sweep() -> list[str]:
    """Settle what dead processes of this machine left, and say in a line what became of each run. No request if there is nothing.

    Raises:
        httpx.HTTPError: Prefect's server is away.
    """
    dead = [(path, made) for path in claims.claims() if (made := claims.read(path)) is not None and claims.is_dead(path, made)]
    descriptor = try_lock(claims.folder() / ".sweep.lock") if dead else None
    if descriptor is None:  # nothing to do, or another process is at it
        return []
    from prefect.client.orchestration import get_client

    try:
        with get_client(sync_client=True) as client:
            return [line for path, made in dead if path.exists() for line in _settle(client, path, made)]
    finally:
        os.close(descriptor)


def _settle(client: SyncPrefectClient, path: Path, made: Claim) -> list[str]:
    """The run's state, its tasks', its slots, its processes; then the claim goes. It stays as long as something is not certain."""
    from prefect.exceptions import ObjectNotFound

    try:
        run = client.read_flow_run(UUID(made.flow_run))
    except ObjectNotFound:  # of another server, or deleted there
        if _age_s(path / "unknown") > FORGET_S:
            shutil.rmtree(path, ignore_errors=True)
        return []
    lines = []
    if not _is_another_attempt(path, made):
        if _says_it_runs(run, path):
            assert run.state is not None
            if run.state.is_running() and str(run.state.id) != made.state and _age_s(path / f"seen-{run.state.id}") < SETTLE_S:
                return []
            lines = [_end(client, run)]
        _end_tasks(client, made)
    if _free_resources(client, path):
        shutil.rmtree(path, ignore_errors=True)
    return lines


def _is_another_attempt(path: Path, made: Claim) -> bool:
    """Whether another process runs the same flow run now, after a crash, a retry or a suspension."""
    others = [other / "lock" for other in claims.folder().glob(f"{made.flow_run}.*") if other != path]
    return any(lock.exists() and not is_free(lock) for lock in others)


def _says_it_runs(run: FlowRun, path: Path) -> bool:
    """Whether the state is not that of a run without a process. One that stopped itself when it was cancelled has not crashed."""
    state = run.state
    if state is None:
        return False
    return state.is_running() or state.is_cancelling() or (state.is_crashed() and bool(claims.notes(path, "cancelled")))


def _end(client: SyncPrefectClient, run: FlowRun) -> str:
    from prefect.states import Cancelled, Crashed

    assert run.state is not None
    state: Any = Crashed(message=WHY) if run.state.is_running() else Cancelled(message="It was cancelled, and its process has ended.")
    client.set_flow_run_state(run.id, state, force=True)
    return f"{run.name} was {run.state.name} without a process and is {state.name} now"


def _end_tasks(client: SyncPrefectClient, made: Claim) -> None:
    """Tasks of a run without a process do not run."""
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId, TaskRunFilter, TaskRunFilterState, TaskRunFilterStateType
    from prefect.client.schemas.objects import StateType
    from prefect.states import Cancelled, Crashed

    run = client.read_flow_run(UUID(made.flow_run))
    if run.state is None or not run.state.is_final():
        return
    running = TaskRunFilter(state=TaskRunFilterState(type=TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])))
    of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
    for task in client.read_task_runs(flow_run_filter=of_run, task_run_filter=running):
        state: Any = Cancelled(message=WHY) if run.state.is_cancelled() else Crashed(message=WHY)
        client.set_task_run_state(task.id, state, force=True)


def _free_resources(client: SyncPrefectClient, path: Path) -> bool:
    """Give back the slots once the stage's processes are gone; kills those that are there after the time to save. False: not yet."""
    marks = claims.notes(path, "mark")
    if any(marked(mark) for mark in marks):
        if _age_s(path / "dead") < KILL_AFTER_S:
            return False
        for mark in marks:
            kill_marked(mark)
    for lease in claims.notes(path, "lease"):
        client.release_concurrency_slots_with_lease(UUID(lease))
    return True


def _age_s(path: Path) -> float:
    """How long ago this was first asked, by a file that tells."""
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        path.touch()
        return 0.0
