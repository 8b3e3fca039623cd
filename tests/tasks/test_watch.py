"""Runs whose process died are ended, and only those."""

import json
import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow, task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.objects import State
from prefect.events.schemas.automations import AutomationCore, EventTrigger
from prefect.states import AwaitingRetry, Cancelling, Completed, Crashed, Paused, Pending, Running, Scheduled, Suspended

from models.marked import MARK, marked
from tasks import claims, tracking, watch
from tasks.claims import Claim, boot_id
from tasks.home import CHECKOUT, ENVIRONMENT
from tasks.locks import try_lock

pytestmark = pytest.mark.usefixtures("home")


@flow
def nothing() -> None:
    """A run of it is only looked at."""


@task
def part() -> None:
    """A task of it."""


@pytest.fixture
def client(prefect_api: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


class Run:
    """A flow run in a state, and the claim of a process on it."""

    def __init__(self, client: SyncPrefectClient, now: State[Any], **changes: str) -> None:
        self.client = client
        self.id = client.create_flow_run(nothing, state=now).id
        found = client.read_flow_run(self.id).state
        assert found is not None
        made = {"flow_run": str(self.id), "state": str(found.id), "host": "here", "boot": boot_id()}
        self.claim = self.claimed({**made, **changes})

    def claimed(self, made: dict[str, str]) -> Path:
        path = claims.folder() / f"{self.id}.{uuid.uuid4().hex[:8]}"
        path.mkdir(parents=True)
        (path / "lock").touch()
        (path / "claim.json").write_text(json.dumps(made))
        return path

    def state(self) -> str:
        state = self.client.read_flow_run(self.id).state
        assert state is not None
        return str(state.name)


def test_a_run_without_its_process_is_crashed_and_frees_what_it_held(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(client, Running())
    running = client.create_task_run(part, flow_run_id=run.id, dynamic_key="0", state=Running())
    name = f"test-{run.id}"
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
    lease = client.increment_concurrency_slots_with_lease([name], 1, "concurrency", 60).json()["lease_id"]
    mark = uuid.uuid4().hex
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env={**os.environ, MARK: mark}, start_new_session=True)
    for note in (f"lease-{lease}", f"mark-{mark}"):
        (run.claim / note).touch()

    (line,) = watch.sweep()
    assert line.endswith("was Running without a process and is Crashed now")
    assert run.state() == "Crashed"
    state = client.read_task_run(running.id).state
    assert state is not None and state.is_crashed()
    assert left.poll() is None and client.read_global_concurrency_limit_by_name(name).active_slots == 1, "its stage may be saving"

    monkeypatch.setattr(watch, "KILL_AFTER_S", 0.0)
    assert watch.sweep() == []
    assert left.wait(10) < 0 and marked(mark) == []
    assert client.read_global_concurrency_limit_by_name(name).active_slots == 0
    assert claims.claims() == []


def test_a_cancelled_run_without_its_process_is_cancelled(client: SyncPrefectClient) -> None:
    run = Run(client, Cancelling())
    assert len(watch.sweep()) == 1 and run.state() == "Cancelled"


def test_a_run_that_stopped_itself_when_it_was_cancelled_has_not_crashed(client: SyncPrefectClient) -> None:
    run = Run(client, Crashed())
    (run.claim / "cancelled-").touch()
    assert len(watch.sweep()) == 1 and run.state() == "Cancelled"


@pytest.mark.parametrize("state", [Paused(), Suspended(), AwaitingRetry(), Scheduled(), Pending(), Completed()], ids=lambda now: now.name)
def test_a_run_that_waits_or_has_ended_stays_as_it_is(client: SyncPrefectClient, state: State[Any]) -> None:
    run = Run(client, state)
    assert watch.sweep() == []
    assert run.state() == state.name and claims.claims() == []


def test_a_run_whose_process_lives_stays_running_however_silent(client: SyncPrefectClient) -> None:
    run = Run(client, Running())
    held = try_lock(run.claim / "lock")
    assert held is not None
    os.utime(run.claim / "lock", (0, 0))
    assert watch.sweep() == [] and run.state() == "Running"
    os.close(held)
    assert len(watch.sweep()) == 1 and run.state() == "Crashed"


def test_nothing_is_concluded_about_another_machine(client: SyncPrefectClient) -> None:
    run = Run(client, Running(), boot="another")
    assert watch.sweep() == [] and run.state() == "Running" and claims.claims() == [run.claim]


def test_a_run_of_this_host_from_before_it_was_restarted_is_crashed(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims.socket, "gethostname", lambda: "here")
    run = Run(client, Running(), boot="before")
    assert len(watch.sweep()) == 1 and run.state() == "Crashed"


def test_a_run_that_another_process_goes_on_with_is_not_crashed(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(client, Running(), state=str(uuid.uuid4()))  # resumed or tried again since the process died
    assert watch.sweep() == [] and run.state() == "Running", "the new process may be about to claim it"
    monkeypatch.setattr(watch, "SETTLE_S", 0.0)
    other = run.claimed(Claim(flow_run=str(run.id), state="", host="here", boot=boot_id()).model_dump())
    held = try_lock(other / "lock")
    assert held is not None
    assert watch.sweep() == [] and run.state() == "Running" and claims.claims() == [other]
    os.close(held)
    assert len(watch.sweep()) == 1 and run.state() == "Crashed", "nobody has it any more"


def test_a_claim_of_another_server_is_kept_and_long_after_forgotten(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(client, Running())
    client.delete_flow_run(run.id)
    assert watch.sweep() == [] and claims.claims() == [run.claim]
    monkeypatch.setattr(watch, "FORGET_S", -1.0)
    assert watch.sweep() == [] and claims.claims() == []


def test_watching_goes_on_while_the_server_is_away(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    run, stop, told, closed = Run(client, Running()), threading.Event(), [], []
    monkeypatch.setattr(tracking, "sweep", lambda: closed.append("MLflow's runs"))
    api = str(client.api_url)
    outcomes = iter([OSError("away"), OSError("away")])
    sweep = watch.sweep

    def sometimes() -> list[str]:
        error = next(outcomes, None)
        if error is not None:
            raise error
        return sweep()

    def tell(line: str) -> None:
        told.append(line)
        stop.set()

    monkeypatch.setattr(watch, "sweep", sometimes)
    watcher = threading.Thread(target=watch.watch_runs, args=(stop,), kwargs={"api": api, "every_s": 0.05, "tell": tell})
    watcher.start()
    watcher.join(60)
    assert len(told) == len(closed) == 1 and run.state() == "Crashed"


def test_the_documented_automation_waits_long_enough_and_spares_those_that_wait() -> None:
    written = yaml.safe_load((CHECKOUT / "docs" / "lost-machines.yaml").read_text())["automations"][0]
    trigger = AutomationCore.model_validate(written).trigger
    assert isinstance(trigger, EventTrigger)
    assert trigger.within.total_seconds() >= 4 * int(ENVIRONMENT["PREFECT_FLOWS_HEARTBEAT_FREQUENCY"])
    assert trigger.within.total_seconds() <= 165, "three minutes, and the server looks every few seconds"
    states = {"Completed", "Failed", "Cancelled", "Crashed", "Paused", "Suspended", "AwaitingRetry", "heartbeat"}
    assert trigger.expect == {f"prefect.flow-run.{state}" for state in states}
