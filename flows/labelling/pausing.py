"""A flow run that waits for labels, as Prefect sees it: its state, its link to the page, and its way back to Running.

Prefect's own `pause_flow_run` is not used: it looks every ten seconds, fails when the API is away for a moment, and does not notice that a
paused run is cancelled. The states and their rules are Prefect's all the same.
"""

from __future__ import annotations

import logging
import time
import uuid
from pathlib import Path
from typing import Any
from uuid import UUID

from data.labelling.store import LabelStore
from data.labelling.waiting import WaitingRun, note_run
from tasks import owner

log = logging.getLogger(__name__)

ASK_EVERY_S = 5.0  # the API, whether somebody resumed or cancelled the run


class Paused:
    """A flow run in the state Paused, its process waiting."""

    def __init__(self, run: WaitingRun) -> None:
        self.run = run
        self._asked_at = time.monotonic()
        self._reachable = True

    def was_resumed(self) -> bool:
        """Whether somebody, or the page's server, has resumed it.

        Raises:
            CancelledRun: it was cancelled, or ended otherwise.
        """
        from prefect.exceptions import CancelledRun

        if time.monotonic() - self._asked_at < ASK_EVERY_S:
            return False
        self._asked_at = time.monotonic()
        state = self._state()
        if state is not None and (state.is_cancelling() or state.is_final()):
            raise CancelledRun(f"{self.run.name} was ended while it waited for labels (state {state.name})")
        return state is not None and state.is_running()

    def resume(self) -> bool:
        """Make it Running again, whoever is faster; False while the API does not answer."""
        from prefect.client.orchestration import get_client

        state = self._state()
        if state is None:
            return False
        if state.is_paused():
            with get_client(sync_client=True) as client:
                client.resume_flow_run(UUID(self.run.flow_run))
        return True

    def _state(self) -> Any:
        """The state that the API tells; None while it does not answer: the labels are watched all the same."""
        from prefect.client.orchestration import get_client

        try:
            with get_client(sync_client=True) as client:
                state = client.read_flow_run(UUID(self.run.flow_run)).state
        except Exception as error:  # whatever a client raises for an API that is away
            if self._reachable:
                log.warning("The Prefect API does not answer while %s waits for labels: %s", self.run.name, error)
            self._reachable = False
            return None
        self._reachable = True
        return state


def owners(store: LabelStore) -> Path:
    """Where the processes that wait hold their locks."""
    folder = store.path.parent / "owners"
    folder.mkdir(exist_ok=True)
    return folder


def pause(store: LabelStore, name: str, patience_h: float) -> Paused:
    """Put the current flow run into the state Paused. Raises RuntimeError if Prefect does not allow it."""
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext
    from prefect.states import Paused as PausedState

    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "asked for by the caller"
    # A key of its own each time: a run that is retried pauses again.
    state = PausedState(timeout_seconds=int(3600 * patience_h), reschedule=False, pause_key=uuid.uuid4().hex)
    with get_client(sync_client=True) as client:
        answer = client.set_flow_run_state(context.flow_run.id, state)
        run = WaitingRun(str(context.flow_run.id), name, str(client.api_url), "paused", owner.claim(owners(store)))
    if answer.state is None or not answer.state.is_paused():
        raise RuntimeError(f"{name} cannot be paused for its labels: {getattr(answer.details, 'reason', None) or answer.status}")
    note_run(store, run)
    return Paused(run)


def suspend(store: LabelStore, name: str, patience_h: float) -> None:
    """End this process; a worker starts the run again when it is resumed.

    Raises:
        prefect.exceptions.Pause: always, where it worked: Prefect ends the process with it.
        ValueError: the run has no deployment, so nobody could start it again.
    """
    from prefect.client.orchestration import get_client
    from prefect.context import FlowRunContext
    from prefect.flow_runs import suspend_flow_run

    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None, "asked for by the caller"
    if context.flow_run.deployment_id is None:
        raise ValueError(f"while_waiting=suspend: {name} has no deployment, so no worker could start it again; use while_waiting=pause")
    with get_client(sync_client=True) as client:
        note_run(store, WaitingRun(str(context.flow_run.id), name, str(client.api_url), "suspended"))
    suspend_flow_run(timeout=int(3600 * patience_h), key=uuid.uuid4().hex)


def announce(store: LabelStore, address: str, command: str) -> None:
    """Show in Prefect what the run waits for, where the page is, and how it is started."""
    from prefect.artifacts import create_link_artifact

    progress = store.progress()
    text = (
        f"This run waits for **{progress.wanted - progress.labels} labels** of people ({progress.labels} of {progress.wanted} are in) "
        f"and goes on by itself when they are there.\n\nStart the page on the machine of the run: `{command}`"
    )
    try:
        create_link_artifact(link=address, link_text="Label on this page", key=store.name, description=text)
    except Exception as error:  # a link is not worth the run
        log.warning("The link to the labelling page is not shown in Prefect: %s", error)
