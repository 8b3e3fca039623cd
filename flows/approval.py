"""A person's approval of a candidate: the flow run waits in the Prefect UI, whose form asks for the candidate's name.

A name is typed and not clicked, so that nobody approves what they did not read. Anything else is a refusal, and so is silence.
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import cast

from prefect.input import RunInput, keyset_from_paused_state
from pydantic import Field

from data.labelling.waiting import WaitingRun
from flows.labelling.pausing import Paused
from models.configs.retrain import ApprovalConfig
from tasks import provenance

LOOK_EVERY_S = 1.0


class Approval(RunInput):
    """The form."""

    candidate: str = Field(description="Type the name of the candidate to make it champion; anything else refuses it.")


def answer(name: str, text: str, config: ApprovalConfig, until: datetime) -> str:
    """What a person typed.

    Args:
        name: of the candidate: what is to be typed.
        text: Markdown that the form shows: what was found of the candidate.
        config: how to wait.
        until: when silence is the answer.

    Raises:
        TimeoutError: nobody answered.
        prefect.exceptions.Pause: with while_waiting=suspend, where this process is to end; the answer is there when the run comes back.
        prefect.exceptions.CancelledRun: the run was cancelled meanwhile.
        ValueError: while_waiting=suspend, and the run has no deployment.
    """
    left_s = int((until - datetime.now(UTC)).total_seconds())
    if left_s <= 0:
        raise TimeoutError(f"nobody typed {name} by {until:%Y-%m-%d %H:%M} UTC")
    form = Approval.with_initial_data(description=f"{text}\n\nType **{name}** to make it champion.")
    return _suspended(form, name, left_s) if config.while_waiting == "suspend" else _paused(form, name, left_s, until)


def _suspended(form: type[RunInput], name: str, left_s: int) -> str:
    """Ends the process the first time; when the run was resumed, and began again, the answer is there."""
    from prefect.flow_runs import suspend_flow_run

    run = provenance.flow_run()
    if run is None or run.deployment_id is None:
        raise ValueError("approval.while_waiting=suspend: this run has no deployment, so no worker could start it again; use pause")
    return _typed(suspend_flow_run(wait_for_input=form, timeout=left_s, key=f"approve-{name}"))


def _paused(form: type[RunInput], name: str, left_s: int, until: datetime) -> str:
    """Waits here. Prefect's own `pause_flow_run` fails when the API is away for a moment, and does not notice a cancelled run."""
    from prefect.client.orchestration import get_client
    from prefect.states import Paused as PausedState

    run = provenance.flow_run()
    assert run is not None, "a flow asks"
    state = PausedState(timeout_seconds=left_s, reschedule=False, pause_key=uuid.uuid4().hex)  # a key of its own: a retry asks again
    keys = keyset_from_paused_state(state)
    state.state_details.run_input_keyset = {str(part): key for part, key in keys.items()}
    with get_client(sync_client=True) as client:
        answered = client.set_flow_run_state(run.id, state)
        if answered.state is None or not answered.state.is_paused():
            raise RuntimeError(f"{run.name} cannot wait for approval: {getattr(answered.details, 'reason', None) or answered.status}")
        waiting = Paused(WaitingRun(str(run.id), run.name, str(client.api_url), "paused"))
    form.save(keys)
    while not waiting.was_resumed():
        if datetime.now(UTC) > until:
            _go_on(waiting)
            raise TimeoutError(f"nobody typed {name} by {until:%Y-%m-%d %H:%M} UTC")
        time.sleep(LOOK_EVERY_S)
    return _typed(cast(RunInput, form.load(keys)))


def _typed(form: RunInput) -> str:
    return str(form.model_dump()["candidate"])


def _go_on(waiting: Paused) -> None:
    """Running again, to write the refusal down; the server lets nobody resume a run whose time is over, so its state is set."""
    from uuid import UUID

    from prefect.client.orchestration import get_client
    from prefect.states import Running

    with get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(waiting.run.flow_run), Running(), force=True)
