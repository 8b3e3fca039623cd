"""A schedule's slots on a real Prefect API: late, missed, overtaken; and what Prefect's clock does when clocks change."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterDeploymentId
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule
from prefect.events import DeploymentEventTrigger
from prefect.events.clients import AssertingEventsClient
from prefect.events.worker import EventsWorker
from prefect.flow_engine import run_flow
from prefect.server.schemas.schedules import CronSchedule as ServersCronSchedule
from prefect.states import Scheduled

from data.judgements import Candidates
from data.labelling.store import LabelStore
from data.records import Message
from flows.cli.session import deliver
from flows.labelling import announcing, tasks
from flows.scheduled import why_skipped
from models.configs.labelling import LabellingConfig
from models.configs.retrain import SlotConfig
from tasks.scheduled import newest

ROOT = Path(__file__).resolve().parents[2]
OURS = next(one for one in yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"] if one["name"] == "retrain")


@flow(name="nightly")
def nightly(latest_h: float = 12.0) -> str:
    """What a scheduled flow does first."""
    return why_skipped(SlotConfig(latest_h=latest_h)) or "worked"


@pytest.fixture
def client(prefect_api) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as made:
        yield made


def slots(client: SyncPrefectClient, name: str, hours: int) -> list[FlowRun]:
    """Runs of an hourly schedule, one for each of the last hours, the oldest first."""
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 * * * *", timezone="Europe/Berlin"))
    made = client.create_deployment(client.create_flow(nightly), name=name, schedules=[schedule])
    now = datetime.now(UTC)
    window = {"start_time": (now - timedelta(hours=hours)).isoformat(), "end_time": now.isoformat(), "min_runs": hours, "max_runs": hours}
    client.request("POST", "/deployments/{id}/schedule", path_params={"id": made}, json=window)
    found = client.read_flow_runs(flow_run_filter=FlowRunFilter(deployment_id=FlowRunFilterDeploymentId(any_=[made])))
    assert len(found) == hours
    return sorted(found, key=lambda one: one.expected_start_time or now)


def told(client: SyncPrefectClient, one: FlowRun, **parameters: Any) -> str:
    found = client.read_flow_run(one.id)
    return str(run_flow(nightly, flow_run=found, parameters=parameters, return_type="result"))


def again(client: SyncPrefectClient, one: FlowRun) -> str:
    client.set_flow_run_state(one.id, Scheduled(), force=True)
    return told(client, one)


def test_of_the_slots_that_were_missed_the_last_runs_late(home: Path, client: SyncPrefectClient) -> None:
    missed = slots(client, "no-worker", 4)
    assert ["was missed, and that of" in told(client, one) for one in missed[:3]] == [True] * 3
    assert told(client, missed[3]) == "worked"
    assert again(client, missed[3]) == "worked"  # it crashed, and was retried
    assert "was missed, and that of" in again(client, missed[0])
    last = newest("nightly/no-worker")
    assert last is not None and last.flow_run == str(missed[3].id)


def test_a_slot_that_comes_too_late_is_skipped(home: Path, client: SyncPrefectClient) -> None:
    (one,) = slots(client, "late", 1)
    assert "h late, and 0.0001 h are the most (slot.latest_h)" in told(client, one, latest_h=1e-4)
    assert newest("nightly/late") is None


def test_a_slot_older_than_one_that_was_worked_on_is_skipped_though_the_server_forgot_that_one(
    home: Path, client: SyncPrefectClient
) -> None:
    older, newer = slots(client, "forgetful", 2)
    assert told(client, newer) == "worked"
    client.delete_flow_run(newer.id)
    assert "was missed, and that of" in told(client, older)


def test_a_run_that_a_person_starts_has_no_slot(home: Path, client: SyncPrefectClient) -> None:
    (scheduled,) = slots(client, "by-hand", 1)
    assert scheduled.deployment_id is not None
    one = client.create_flow_run_from_deployment(scheduled.deployment_id)
    assert told(client, one, latest_h=1e-9) == "worked" and newest("nightly/by-hand") is None


# When clocks change


def moments(cron: str, zone: str, start: datetime) -> list[str]:
    """When a schedule starts runs in the three days after a moment, as the server finds it at any time of those days, in UTC."""
    found: set[datetime] = set()
    for minutes in range(0, 24 * 60, 15):
        asked = start + timedelta(minutes=minutes)
        found |= {date.astimezone(UTC) for date in asyncio.run(ServersCronSchedule(cron=cron, timezone=zone).get_dates(1, asked))}
    return [f"{moment:%d %H:%M} = {moment.astimezone(ZoneInfo(zone)):%H:%M%z}" for moment in sorted(found)]


@pytest.mark.parametrize(
    ("cron", "zone", "start", "expected"),
    [
        # 02:30 is not there on the day that summer time begins: it runs an hour early by the clock.
        ("30 2 * * *", "Europe/Berlin", datetime(2027, 3, 27, 20), ["28 00:30 = 01:30+0100", "29 00:30 = 02:30+0200"]),
        ("30 2 * * *", "America/New_York", datetime(2027, 3, 14, 0), ["14 06:30 = 01:30-0500", "15 06:30 = 02:30-0400"]),
        # An hour is there twice on the day that it ends: it runs in the first of the two.
        ("30 2 * * *", "Europe/Berlin", datetime(2026, 10, 24, 20), ["25 00:30 = 02:30+0200", "26 01:30 = 02:30+0100"]),
        ("30 1 * * *", "America/New_York", datetime(2026, 11, 1, 0), ["01 05:30 = 01:30-0400", "02 06:30 = 01:30-0500"]),
        # What lies outside of that hour keeps its time of day.
        ("0 3 * * *", "Europe/Berlin", datetime(2027, 3, 27, 20), ["28 01:00 = 03:00+0200", "29 01:00 = 03:00+0200"]),
        ("0 3 * * *", "Europe/Berlin", datetime(2026, 10, 24, 20), ["25 02:00 = 03:00+0100", "26 02:00 = 03:00+0100"]),
    ],
)
def test_a_daily_schedule_starts_once_a_day_when_clocks_change(cron: str, zone: str, start: datetime, expected: list[str]) -> None:
    assert moments(cron, zone, start.replace(tzinfo=UTC)) == expected


def test_our_schedule_and_trigger_are_what_the_documentation_says() -> None:
    assert OURS["schedules"] == [{"slug": "nightly", "cron": "0 3 * * *", "timezone": "Europe/Berlin", "active": False}]
    assert OURS["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    documented = (ROOT / "docs" / "schedules.md").read_text()
    assert "0 3 * * *" in documented and f"threshold: {OURS['triggers'][0]['threshold']}" in documented


# Enough new labels


def test_the_trigger_is_an_automation_that_the_server_takes(client: SyncPrefectClient) -> None:
    trigger = DeploymentEventTrigger.model_validate(OURS["triggers"][0])
    flow_id = client.create_flow(nightly)
    trigger.set_deployment_id(client.create_deployment(flow_id, name="triggered"))

    async def taken() -> UUID:
        async with get_client() as waiting:
            return await waiting.create_automation(trigger.as_automation())

    made = client.request("GET", "/automations/{id}", path_params={"id": asyncio.run(taken())}).json()
    assert made["name"] == "retrain-on-labels" and made["trigger"]["threshold"] == 20 and not made["enabled"]
    assert made["trigger"]["expect"] == [announcing.EVENT] and made["actions"][0]["type"] == "run-deployment"


def test_every_label_is_an_event_that_the_trigger_is_for(home: Path) -> None:
    store: LabelStore = tasks.register([Candidates("c", "test", (Message("user", "?"),), ("a", "b"), ("x", "y"))], LabellingConfig(), 0)
    EventsWorker.set_client_override(AssertingEventsClient)
    try:
        AssertingEventsClient.reset()
        announcing.announce(store, 3)
        deliver()
        (events,) = [made.events for made in AssertingEventsClient.all if made.events]
    finally:
        EventsWorker.set_client_override(None)  # type: ignore[arg-type]
    trigger = DeploymentEventTrigger.model_validate(OURS["triggers"][0])
    assert [event.event in trigger.expect for event in events] == [True] * 3
    assert {event.resource.id for event in events} == {f"posttrain.labels.{store.name}"}
