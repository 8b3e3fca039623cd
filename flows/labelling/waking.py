"""Waking flow runs: when enough labels are in, those that wait are resumed through the Prefect API that knows them."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from uuid import UUID

from data.labelling.store import LabelStore
from data.labelling.waiting import WaitingRun, note_run, waiting_runs

log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0
TRY_AGAIN_S = 60.0  # after an API that did not answer: it may have ended with a run that was killed


def wake(run: WaitingRun) -> bool:
    """Resume one run; returns whether it was waiting. Raises what the API's client raises where it cannot be reached."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: run.api}), get_client(sync_client=True) as client:
        try:
            state = client.read_flow_run(UUID(run.flow_run)).state
        except ObjectNotFound:
            return False
        if state is None or not state.is_paused():
            return False
        client.resume_flow_run(UUID(run.flow_run))
        return True


def living_runs(store: LabelStore) -> list[WaitingRun]:
    """The runs that wait, less those whose process was killed: woken, they would be Running for ever."""
    from flows.labelling.pausing import owners
    from tasks.owner import dead_owners

    dead = dead_owners(owners(store))
    for run in waiting_runs(store):
        if run.owner in dead:
            note_run(store, replace(run, state="done"))
    return waiting_runs(store)


class Waker:
    """A thread that wakes the runs that wait for a task, soon after `look` was called and every few seconds anyway.

    The second covers a server that ended between the last label and the call.
    """

    def __init__(self, store: LabelStore, look_every_s: float = LOOK_EVERY_S) -> None:
        self.store = store
        self.look_every_s = look_every_s
        self._asked = threading.Event()
        self._stopping = False
        self._not_before: dict[str, float] = {}
        self._thread = threading.Thread(target=self._work, name="waker", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def look(self) -> None:
        """Look at once whether enough labels are in."""
        self._asked.set()

    def stop(self) -> None:
        """End."""
        self._stopping = True
        self._asked.set()
        self._thread.join(timeout=10)

    def _work(self) -> None:
        while not self._stopping:
            if self.store.progress().enough:
                for run in living_runs(self.store):
                    self._try(run)
            self._asked.wait(self.look_every_s)
            self._asked.clear()

    def _try(self, run: WaitingRun) -> None:
        if time.monotonic() < self._not_before.get(run.flow_run, 0.0):
            return
        try:
            if wake(run):
                log.warning("Enough labels are in: %s goes on.", run.name)
        except Exception as error:  # whatever a client raises for an API that is gone; a run that lives watches the labels itself
            self._not_before[run.flow_run] = time.monotonic() + TRY_AGAIN_S
            log.warning("%s could not be told that enough labels are in (%s): %s", run.name, run.api, error)
