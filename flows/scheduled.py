"""Slots of a schedule: whether a flow run is to work on the one that it was started for.

* A slot is worked on once: the run that has its record (tasks/scheduled.py) is the only one, and may come back after a crash.
* Of slots that were missed, because no worker was there or another run took long, only the last runs, late. The others are skipped.
* A slot that is later than `latest_h` is skipped.

Runs that a person, an event or the command line started have no slot, and always work.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from models.configs.retrain import SlotConfig
from tasks import provenance
from tasks.scheduled import claim, holder, newest


def why_skipped(config: SlotConfig) -> str:
    """Why the current flow run is to do nothing, in words; empty where it is to work, and then it has the slot."""
    run = provenance.flow_run()
    if run is None or not _has_slot(run):
        return ""
    name, at = _deployment(), run.expected_start_time.astimezone(UTC)
    own = holder(name, at)
    if own is not None and own.flow_run == str(run.id):
        return ""
    late = datetime.now(UTC) - at
    slot = f"the slot of {at:%Y-%m-%d %H:%M} UTC"
    if late > timedelta(hours=config.latest_h):
        return f"{slot} came {late.total_seconds() / 3600:.1f} h late, and {config.latest_h:g} h are the most (slot.latest_h)"
    newer = _newer(run, at, name)
    if newer is not None:
        return f"{slot} was missed, and that of {newer:%Y-%m-%d %H:%M} UTC is due"
    taken = claim(name, at, str(run.id))
    return "" if taken.flow_run == str(run.id) else f"{slot} belongs to the flow run {taken.flow_run}"


def _has_slot(run: Any) -> bool:
    return run.created_by is not None and run.created_by.type == "SCHEDULE" and run.expected_start_time is not None


def _deployment() -> str:
    """FLOW/DEPLOYMENT: a name and not an id, which another server would not share."""
    from prefect.runtime import deployment, flow_run

    return f"{flow_run.flow_name}/{deployment.name}"


def _newer(run: Any, at: datetime, name: str) -> datetime | None:
    """A later slot that is due, or was worked on; None if there is none."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId, FlowRunFilterExpectedStartTime

    last = newest(name)
    if last is not None and last.at > at:
        return last.at
    due = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[run.deployment_id]),
        expected_start_time=FlowRunFilterExpectedStartTime.model_validate(
            {"after_": at + timedelta(seconds=1), "before_": datetime.now(UTC)}
        ),
    )
    with get_client(sync_client=True) as client:
        others = client.read_flow_runs(flow_run_filter=due)
    times = [one.expected_start_time for one in others if _has_slot(one) and not (one.state and one.state.is_cancelled())]
    return max((time.astimezone(UTC) for time in times if time is not None), default=None)
