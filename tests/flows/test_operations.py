"""Cancel and death, with a real server, a real `serve` process, and a stage that ignores SIGTERM and starts processes in own sessions."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelling

from models.marked import MARK
from tasks import tracking
from tasks.claims import claims
from tasks.device import device_lock
from tasks.watch import sweep, watch_runs

ROOT = Path(__file__).resolve().parents[2]
LIMIT = "operations"
GRACE_S = 2.0

FILES = {
    "holdmodels.py": """
from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict


class HoldConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    seconds: float = 0.0
    name: str = ""


def hold(config: HoldConfig, *, run) -> dict:
    if config.seconds:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        for _ in range(2):
            subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    (Path(os.environ["POSTTRAIN_PROBE"]) / config.name).write_text(str(os.getpid()))
    time.sleep(config.seconds)
    (run.out / "done.txt").write_text("done")
    return {}
""",
    "holdtasks.py": """
from pathlib import Path

from holdmodels import HoldConfig
from tasks.key import Project
from tasks.stage import StageContext, stage
from tasks.store import Artifact

PROJECT = Project(Path(__file__).resolve().parent, ("holdmodels", "holdtasks"), ("holdmodels",))


@stage(kind="dataset", runs="holdmodels:hold", project=PROJECT)
def hold(config: HoldConfig, *, context: StageContext) -> Artifact:
    return context.run(config)
""",
    "holdflow.py": """
import os
import sys
from pathlib import Path

from prefect import flow

import holdtasks
from holdmodels import HoldConfig
from tasks.tracking import pipeline


@flow
def holding(name: str, seconds: float = 0.0):
    config = HoldConfig(name=name, seconds=seconds)
    with pipeline("holding", config):
        (Path(os.environ["POSTTRAIN_PROBE"]) / f"{name}.flow").write_text(str(os.getpid()))
        return holdtasks.hold(config)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        holding.serve(name="holding", limit=3)
    else:
        holding(sys.argv[2], float(sys.argv[3]))
""",
}


class World:
    """The server, what runs on it, and an output folder."""

    def __init__(self, root: Path, client: SyncPrefectClient) -> None:
        self.root = root
        self.client = client
        for name, text in FILES.items():
            (root / name).write_text(text)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        mine = {"POSTTRAIN_HOME": os.environ["POSTTRAIN_HOME"], "PYTHONPATH": f"{root}:{ROOT}", "POSTTRAIN_THREADS": "1"}
        mine |= {"POSTTRAIN_PROBE": str(root), "POSTTRAIN_GRACE_S": str(GRACE_S), "CUDA_VISIBLE_DEVICES": "0", "POSTTRAIN_LIMIT": LIMIT}
        self.environment = {**kept, **mine, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "PREFECT_HOME": str(root / "prefect")}
        self.environment |= {"MLFLOW_TRACKING_URI": tracking.tracking_uri(), "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
        self.log = (root / "log.txt").open("wb")

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, str(self.root / "holdflow.py"), *arguments]
        return subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=self.log, stderr=self.log, start_new_session=True)

    def submit(self, **parameters: Any) -> UUID:
        deployment = self.await_that(lambda: self._deployment())
        return self.client.create_flow_run_from_deployment(deployment, parameters=parameters).id

    def _deployment(self) -> UUID | None:
        try:
            return self.client.read_deployment_by_name("holding/holding").id
        except ObjectNotFound:
            return None

    def await_that(self, condition: Callable[[], Any], timeout_s: float = 240.0) -> Any:
        end = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < end, f"it did not happen in time; {(self.root / 'log.txt').read_text()[-3000:]}"
            time.sleep(0.1)
        return found

    def pid(self, name: str) -> int:
        """Of what has written this file: `NAME` the stage's, `NAME.flow` the flow's."""
        path = self.root / name
        return int(self.await_that(lambda: path.exists() and path.read_text()))

    def state(self, run: UUID) -> str:
        state = self.client.read_flow_run(run).state
        return str(state.name) if state else ""

    def task_states(self, run: UUID) -> set[str]:
        tasks = self.client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run])))
        return {str(task.state.name) if task.state else "" for task in tasks}

    def slots(self) -> int:
        return self.client.read_global_concurrency_limit_by_name(LIMIT).active_slots

    def tracked(self, run: UUID) -> set[str]:
        client = MlflowClient(tracking.tracking_uri())
        experiment = client.get_experiment_by_name("posttrain")
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id], f"tags.`prefect.flow_run_id` = '{run}'")
        return {found.info.status for found in runs}

    def is_gone(self, run: UUID, state: str, stage: int) -> bool:
        """Everything that a run's end must bring."""
        return (
            self.state(run) == state
            and not self.task_states(run) & {"Running", "Pending"}
            and not descendants(self.root)
            and not is_running(stage)
            and self.slots() == 0
        )


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def descendants(root: Path) -> list[int]:
    """Processes that stages of this test started in sessions of their own."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            environment = (folder / "environ").read_bytes() if folder.name.isdigit() else b""
        except OSError:
            continue
        if f"{MARK}=".encode() in environment and f"POSTTRAIN_PROBE={root}".encode() in environment:
            found.append(int(folder.name))
    return found


@pytest.fixture(scope="module")
def world(prefect_api: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("operations")
    with pytest.MonkeyPatch.context() as patch, get_client(sync_client=True) as client:
        patch.setenv("POSTTRAIN_HOME", str(root / "home"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow.db'}")
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=LIMIT, limit=1))
        world = World(root, client)
        yield world
        world.log.close()


@pytest.fixture(scope="module")
def served(world: World) -> Iterator[subprocess.Popen[bytes]]:
    process = world.start("serve")
    yield process
    process.send_signal(signal.SIGKILL)
    process.wait()


pytestmark = pytest.mark.timeout(600)


def test_cancel_ends_all_of_a_run_and_lets_the_next_one_in(world: World, served: subprocess.Popen[bytes]) -> None:
    run = world.submit(name="first", seconds=600.0)
    stage = world.pid("first")
    world.await_that(lambda: len(descendants(world.root)) == 2)
    following = world.submit(name="quick")
    world.pid("quick.flow")
    world.await_that(lambda: any("waits for a free device (gpu-0: " in line for line in logs(world, following)))
    assert not (world.root / "quick").exists() and world.slots() == 1

    begin = time.monotonic()
    world.client.set_flow_run_state(run, Cancelling())
    world.await_that(lambda: world.state(run) == "Cancelled" and not descendants(world.root) and not is_running(stage), 60)
    world.await_that(lambda: world.tracked(run) == {"KILLED"} and "Running" not in world.task_states(run), 60)
    world.await_that(lambda: not device_of(world).startswith(world.client.read_flow_run(run).name))
    assert time.monotonic() - begin < 60
    world.await_that(lambda: world.state(following) == "Completed")
    world.await_that(lambda: world.slots() == 0)


def device_of(world: World) -> str:
    """Which run has the device, or had it last."""
    return device_lock(world.root / "home" / "store" / "locks", "gpu-0").read_text()


def logs(world: World, run: UUID) -> list[str]:
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    return [line.message for line in world.client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])))]


def test_a_hit_does_not_wait_and_a_killed_run_does_not_stay_running(world: World, served: subprocess.Popen[bytes]) -> None:
    if not (world.root / "quick").exists():  # else the test above has computed it
        first = world.submit(name="quick")
        world.await_that(lambda: world.state(first) == "Completed")
    run = world.submit(name="victim", seconds=600.0)
    stage = world.pid("victim")
    world.await_that(lambda: world.slots() == 1)

    hit = world.submit(name="quick")
    world.await_that(lambda: world.state(hit) == "Completed" and world.task_states(hit) == {"Cached"})
    assert world.slots() == 1 and is_running(stage), "the slot is another's still"

    begin, stop = time.monotonic(), threading.Event()
    flow = world.pid("victim.flow")
    for pid in (served.pid, flow):  # the worker first: it cannot report
        os.kill(pid, signal.SIGKILL)
    watcher = threading.Thread(
        target=watch_runs, args=(stop,), kwargs={"api": str(PREFECT_API_URL.value()), "every_s": 0.5, "tell": lambda line: None}
    )
    watcher.start()
    try:
        world.await_that(lambda: world.state(run) == "Crashed" and "Running" not in world.task_states(run), 180)
        world.await_that(lambda: world.is_gone(run, "Crashed", stage) and world.tracked(run) == {"KILLED"}, 120)
        assert time.monotonic() - begin < 180
        world.await_that(lambda: claims() == [])
    finally:
        stop.set()
        watcher.join(60)


def test_cancel_ends_a_run_that_no_worker_runs(world: World) -> None:
    process = world.start("here", "alone", "600")
    stage = world.pid("alone")
    world.await_that(lambda: len(descendants(world.root)) == 2)
    (run,) = [UUID(path.name.partition(".")[0]) for path in claims()]
    begin = time.monotonic()
    world.client.set_flow_run_state(run, Cancelling())
    assert process.wait(60) != 0
    world.await_that(sweep)
    world.await_that(lambda: world.is_gone(run, "Cancelled", stage), 60)
    assert world.tracked(run) == {"KILLED"} and time.monotonic() - begin < 60
