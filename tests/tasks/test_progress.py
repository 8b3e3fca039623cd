"""A running stage in Prefect and in its log, read back from a real API: its progress, its line, and nothing that it would wait for."""

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, LogFilter
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks import process, progress, registry
from tasks.process import StageConfigError
from tasks.progress import ProgressArtifact, heartbeat_s

pytestmark = pytest.mark.usefixtures("prefect_api")

TIME = r"(?:\d+ min )?[\d.]+ s"
HOSTILE = "<b>x</b>\x1b[31m|`$(rm -rf)`\n# 1 \u202e" + "a" * 300


@pytest.fixture
def toyed(toy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy project with a look every tenth of a second."""
    monkeypatch.setattr(progress, "FIRST_AFTER_S", 0.1)
    monkeypatch.setattr(progress, "EVERY_S", 0.1)
    toy.stages, toy.work = toy.load("toytasks.stages"), toy.load("toymodels.work")
    return toy


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, str]]:
    """(key, percent, text) of everything that reached the API, in order."""
    found: list[tuple[str, float, str]] = []
    send = ProgressArtifact._send

    def recorded(self: ProgressArtifact, connection: progress.Connection, percent: float, text: str) -> None:
        send(self, connection, percent, text)
        found.append((self.key, percent, text))

    monkeypatch.setattr(ProgressArtifact, "_send", recorded)
    return found


@flow
def called(work: Callable[[], Any]) -> tuple[str, Any]:
    """Whatever a flow does, and the id of its run."""
    context = FlowRunContext.get()
    assert context is not None and context.flow_run is not None
    with registry.recording("toy", {}):
        result = work()
    return str(context.flow_run.id), result


def of_run(flow_run: str) -> FlowRunFilter:
    return FlowRunFilter(id={"any_": [flow_run]})  # type: ignore[arg-type]


def artifacts(flow_run: str) -> dict[str, tuple[Any, str]]:
    """(data, description) of the progress artifacts of a run by key, as the API has them."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(flow_run_filter=of_run(flow_run))
    return {str(one.key): (one.data, str(one.description)) for one in found if one.type == "progress"}


def story(flow_run: str) -> list[str]:
    """The lines of a flow run's own log, without Prefect's."""
    APILogWorker.drain_all(timeout=20)
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(flow_run_id={"any_": [flow_run]}))  # type: ignore[arg-type]
    lines = [entry.message for entry in sorted(logs, key=lambda entry: entry.timestamp) if entry.name == "prefect.flow_runs"]
    return [line for line in lines if not re.match("Beginning flow run|View at|Finished in state|Encountered exception", line)]


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("progress of")]


def test_a_stage_is_shown_while_it_runs_and_is_done_at_the_end(toyed: Any, sent: list, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict] = []

    def look(told: process.Progress) -> None:
        if told.label == "train" and told.done in (4, 7):
            seen.append(artifacts(str(flow_run())))

    def flow_run() -> Any:
        context = FlowRunContext.get()
        return context.flow_run.id if context and context.flow_run else None

    monkeypatch.setattr(process, "on_progress", look)
    stages, work = toyed.stages, toyed.work

    def both() -> None:
        data = stages.numbers(work.NumbersConfig(), seed=0)
        stages.train(work.TrainConfig(steps=8, pause_s=0.6), data, seed=0)

    run, _ = called(both)
    # What the API had at steps 4 and 7 was an earlier step of the same eight.
    assert [snapshot["progress-train"][0] in {100 * n / 8 for n in range(1, 8)} for snapshot in seen] == [True, True]
    percents = [percent for key, percent, _ in sent if key == "progress-train"]
    assert percents == sorted(percents) and percents[-1] == 100 and 0 < percents[1] < 99
    assert any(re.fullmatch(r"train: \d of 8(, about \d+ (s|min) left)?", text) for _, _, text in sent)
    data, words = artifacts(run)["progress-train"]
    assert data == 100 and re.match(rf"train: computed in {TIME}, for the first time", words)
    assert own_threads() == []
    again, _ = called(both)
    assert artifacts(again) == {}, "a hit has nothing to show"
    first, second = registry.runs("toy")
    assert story(run)[0].startswith("numbers: computed in ") and story(run)[0].endswith(", for the first time")
    digests = {label: stage.artifact.digest[:12] for label, stage in second.stages.items() if stage.artifact}
    assert story(again)[:2] == [f"{label}: hit, artifact {digest} made by {first.name}" for label, digest in digests.items()]


def test_a_resumed_stage_begins_at_its_step_and_its_line_says_why(toyed: Any, sent: list, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, work = toyed.stages, toyed.work
    monkeypatch.setenv("POSTTRAIN_FAILPOINT", "step:5")

    def train(steps: int = 8, **config: Any) -> Any:
        return stages.train(work.TrainConfig(steps=steps, pause_s=0.6, **config), stages.numbers(work.NumbersConfig(), seed=0), seed=0)

    run, _ = called(train)
    percents = [percent for key, percent, _ in sent if key == "progress-train"]
    assert min(percents[1:]) > 0 and percents == sorted(percents), "killed in step 5, resumed after 4: 5 of 8 comes next"
    (line,) = (line for line in story(run) if line.startswith("train: "))
    assert re.fullmatch(
        rf"train: resumed after update 4, computed in {TIME} \(attempt 2; before: train was killed by SIGKILL; its log is \S+\)", line
    )
    assert registry.runs("toy")[-1].stages["train"].outcome == "resumed"
    # Another run, other settings: begun and killed in a flow that does not try again, and resumed by the next.
    monkeypatch.setattr(stages.train, "retries", 0)
    stages.train._tasks.clear()
    monkeypatch.setenv("POSTTRAIN_FAILPOINT", "step:4")
    with pytest.raises(process.StageProcessError):
        called(lambda: train(6))
    killed = registry.runs("toy")[-1]
    del sent[:]
    run, _ = called(lambda: train(6))
    assert min(percent for key, percent, _ in sent if key == "progress-train") >= 100 * 3 / 6
    (line,) = (line for line in story(run) if line.startswith("train: "))
    assert re.fullmatch(rf"train: resumed after update 2, begun and not finished by {killed.name}, computed in {TIME}", line)


def test_lines_say_what_changed_and_what_failed(toyed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, work = toyed.stages, toyed.work

    def train(label: str = "", **config: Any) -> Any:
        data = stages.numbers(work.NumbersConfig(), seed=0)
        return (stages.train.named(label) if label else stages.train)(work.TrainConfig(**config), data, seed=0)

    called(train)
    first = registry.runs("toy")[-1]
    run, model = called(lambda: train(steps=4))
    assert re.fullmatch(rf"train: computed in {TIME}, because train\.steps changed 6 -> 4 since {first.name}", story(run)[1])
    from tasks.store import Store

    Store(toyed.home / "store").remove(model.digest)
    changed = registry.runs("toy")[-1]
    run, _ = called(lambda: train(steps=4))
    assert re.fullmatch(rf"train: computed in {TIME}, because its artifact, made in {changed.name}, was missing or damaged", story(run)[1])
    run, _ = called(lambda: train(steps=10, trouble="flaky"))
    assert re.search(r"since toy-\d+ \(attempt 2; before: the network is down \(ConnectionError\)\)$", story(run)[1])
    ids: list[str] = []

    def failing() -> None:
        context = FlowRunContext.get()
        assert context is not None and context.flow_run is not None
        ids.append(str(context.flow_run.id))
        train(HOSTILE, trouble="config", steps=12)

    with pytest.raises(StageConfigError):
        called(failing)
    line = next(line for line in story(ids[0]) if "failed after" in line)
    assert line.isprintable() and line.endswith("train.steps is 7: give an even number")
    assert registry.runs("toy")[-1].stages[f"train[{HOSTILE}]"].outcome == "failed"
    assert own_threads() == []


def test_a_hostile_label_stays_text_in_its_artifact(toyed: Any) -> None:
    stages, work = toyed.stages, toyed.work

    def train() -> None:
        data = stages.numbers(work.NumbersConfig(), seed=0)
        stages.train.named(HOSTILE)(work.TrainConfig(pause_s=0.15), data, seed=0)

    run, _ = called(train)
    ((key, (data, words)),) = ((key, value) for key, value in artifacts(run).items() if key != "progress-numbers")
    assert re.fullmatch(r"progress-train-b-x-b-31m-rm-rf-1-a+", key) and len(key) <= 100 and data == 100
    assert words.isprintable() and "<b>" not in words and r"\`" in words


def test_a_silent_stage_gives_signs_of_life(toyed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, work = toyed.stages, toyed.work
    monkeypatch.setenv("POSTTRAIN_HEARTBEAT_MIN", "0.02")  # 1.2 s

    def train() -> None:
        stages.train(work.TrainConfig(pause_s=0.7), stages.numbers(work.NumbersConfig(), seed=0), seed=0)

    run, _ = called(train)
    beats = [line for line in story(run) if re.match(r"train: \d of 6", line)]
    assert 1 <= len(beats) <= registry.runs("toy")[-1].stages["train"].seconds / 1.2
    assert beats == sorted(beats)


@pytest.mark.parametrize("wrong", ["0", "-1", "often", "inf", "nan"])
def test_a_wrong_heartbeat_is_refused(monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    monkeypatch.setenv("POSTTRAIN_HEARTBEAT_MIN", wrong)
    with pytest.raises(ValueError, match=f"POSTTRAIN_HEARTBEAT_MIN is '{wrong}': give the minutes"):
        heartbeat_s()


class Wire:
    """A way to the API that can be cut: then nothing answers, and no connection is refused either."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.is_cut = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(self.target)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with source, sink:
            while True:
                try:
                    part = source.recv(65536)
                    while self.is_cut.is_set():
                        time.sleep(0.02)
                    if not part:
                        return
                    sink.sendall(part)
                except OSError:
                    return


@contextmanager
def wire() -> Iterator[Wire]:
    host, port = re.findall(r"//([^:/]+):(\d+)", str(PREFECT_API_URL.value()))[0]
    one = Wire((host, int(port)))
    with temporary_settings({PREFECT_API_URL: f"http://127.0.0.1:{one.port}/api"}):
        yield one
        for worker in (APILogWorker, EventsWorker):  # what they still hold goes this way too
            worker.drain_all(timeout=20)
    one.listener.close()


def test_an_api_that_is_away_costs_a_stage_nothing(
    toyed: Any, sent: list, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stages, work = toyed.stages, toyed.work
    monkeypatch.setattr(progress, "REQUEST_S", 3.0)
    monkeypatch.setattr(progress, "AGAIN_AFTER_S", 0.1)
    steps: list[tuple[int, float]] = []
    failed: list[tuple[float, float]] = []
    send = ProgressArtifact._send

    def timed(self: ProgressArtifact, connection: progress.Connection, percent: float, text: str) -> None:
        begin = time.monotonic()
        try:
            send(self, connection, percent, text)
        except Exception:
            failed.append((begin, time.monotonic()))
            raise

    monkeypatch.setattr(ProgressArtifact, "_send", timed)

    def cut(told: process.Progress) -> None:
        if told.label != "train" or told.state != "running" or not told.done:
            return
        steps.append((told.done, time.monotonic()))
        if told.done == 3:
            at.is_cut.set()
        if told.done == 12:
            at.is_cut.clear()

    monkeypatch.setattr(process, "on_progress", cut)
    with wire() as at:
        run, _ = called(lambda: stages.train(work.TrainConfig(steps=14, pause_s=0.5), stages.numbers(work.NumbersConfig(), seed=0), seed=0))
    assert [done for done, _ in steps] == list(range(1, 15)), "each step was told, the API there or not"
    assert failed and max(sum(begin < when < end for _, when in steps) for begin, end in failed) >= 2, "training went on during a request"
    assert artifacts(run)["progress-train"][0] == 100, "it was tried again"
    said = [record.getMessage() for record in caplog.records if record.name == "tasks.progress"]
    assert len(said) == 1 and said[0].startswith("progress-train is not shown in Prefect for now; the stage goes on. ReadTimeout")
    assert own_threads() == []
