"""Stages in real flows, on a real Prefect: what is computed again, what is not, and what a failure leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import flow, task

from tasks import key as key_module
from tasks import process, registry
from tasks import store as store_module
from tasks.home import CHECKOUT
from tasks.process import StageBug, StageConfigError, StageOOM
from tasks.stage import planning
from tasks.store import Artifact, Store

pytestmark = pytest.mark.usefixtures("prefect_api")

ALL = ["numbers", "train", "summary"]


@pytest.fixture
def flows(toy) -> ModuleType:
    return toy.load("toytasks.flows")


@pytest.fixture
def stages(toy) -> ModuleType:
    return toy.load("toytasks.stages")


@pytest.fixture
def work(toy) -> ModuleType:
    return toy.load("toymodels.work")


@flow
def call(stage: Any, *args: Any, **kwargs: Any) -> Artifact:
    return stage(*args, **kwargs)


def store(toy) -> Store:
    return Store(toy.home / "store")


def overwrite(path: Path, content: bytes, keep_time: bool = False) -> None:
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def start_flow(toy, seed: int, pause_s: float, **env: str) -> subprocess.Popen[str]:
    """The flow in a process of its own, against the same Prefect."""
    from prefect.settings import PREFECT_API_URL

    path = f"{toy.root}:{CHECKOUT}"
    return subprocess.Popen(
        [sys.executable, "-m", "toytasks.flows", str(seed), str(pause_s)],
        env={**os.environ, "PYTHONPATH": path, "PREFECT_API_URL": str(PREFECT_API_URL.value()), **env},
        cwd=toy.root,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for(condition: Any, timeout_s: float = 60.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


# The cache


def test_second_run_is_all_cached(toy, flows: ModuleType) -> None:
    first = flows.pipeline()
    assert toy.ran() == ALL
    second = flows.pipeline()
    assert toy.ran() == []
    assert first == second
    assert {name: type(artifact) for name, artifact in second.items()} == dict.fromkeys(first, Artifact)
    assert second["model"].meta == first["model"].meta == {"sum": 18}
    assert toy.history("train") == [(step, {"train/sum": float(value)}) for step, value in enumerate([2, 6, 12, 12, 14, 18], 1)]


def test_a_cached_run_is_fast(toy, flows: ModuleType) -> None:
    flows.pipeline()
    start = time.process_time()
    for _ in range(5):
        flows.pipeline()
    assert time.process_time() - start < 2.0, "15 hits"


def test_a_parameter_recomputes_its_stage_and_what_follows(toy, flows: ModuleType, work: ModuleType) -> None:
    flows.pipeline()
    toy.ran()
    flows.pipeline(train=work.TrainConfig(steps=8))
    assert toy.ran() == ["train", "summary"]
    flows.pipeline(numbers=work.NumbersConfig(log_every=99), train=work.TrainConfig(pause_s=0.001))
    assert toy.ran() == [], "these fields cannot change the result"
    flows.pipeline(seed=1)
    assert toy.ran() == ALL


def test_early_cutoff(toy, flows: ModuleType, work: ModuleType) -> None:
    """A stage that ran again and made the same bytes leaves what follows cached."""
    flows.pipeline(train=work.TrainConfig(steps=4))
    toy.ran()
    toy.edit("toymodels/work.py", '"sum": state["sum"]}\n\n\ndef trouble', '"sum": state["sum"], "new": 1}\n\n\ndef trouble')
    toy.reload()
    stages, fresh = toy.load("toytasks.stages"), toy.load("toymodels.work")
    data = call(stages.numbers, fresh.NumbersConfig(), seed=0)
    model = call(stages.train, fresh.TrainConfig(steps=4), data, seed=0)
    assert toy.ran() == ["numbers", "train"], "their code changed"
    assert model.meta["new"] == 1
    call(stages.summary, fresh.NumbersConfig(), {"model": model})
    toy.ran()
    again = Artifact(**{**model.model_dump(), "meta": {}})
    call(stages.summary, fresh.NumbersConfig(), {"model": again})
    assert toy.ran() == [], "only digest and kind of an input count"


@pytest.mark.parametrize("how", ["delete", "truncate", "flip", "flip, same time", "extra file"])
def test_a_damaged_artifact_is_computed_again(toy, flows: ModuleType, how: str) -> None:
    first = flows.pipeline()
    toy.ran()
    path = store(toy).path(first["model"]) / "model.json"
    content = path.read_bytes()
    path.parent.chmod(0o755)
    if how == "delete":
        path.unlink()
    elif how == "truncate":
        overwrite(path, content[:-1])
    elif how == "extra file":
        (path.parent / "tokenizer.json").write_text("{}")
    else:
        overwrite(path, content.replace(b"6", b"7"), keep_time="same time" in how)
        store_module._seen.clear()  # a new process: the file's time cannot be trusted, its bytes are read
    assert flows.pipeline() == first
    assert toy.ran() == ["train"], "and its result is the same, so that the summary stays cached"
    assert (store(toy).path(first["model"]) / "model.json").read_bytes() == content


@pytest.mark.parametrize(
    ("part", "content"), [("keys", b"{broken"), ("keys", b'{"storage_key": "../../etc/passwd"}'), ("results", b""), ("results", b"[]")]
)
def test_a_corrupt_record_is_a_miss(toy, flows: ModuleType, part: str, content: bytes) -> None:
    first = flows.pipeline()
    toy.ran()
    records = [path for path in (toy.home / "store" / "records" / part).rglob("*") if path.is_file()]
    assert len(records) == 3
    for path in records:
        path.write_bytes(content)
    assert flows.pipeline() == first
    assert toy.ran() == ALL
    flows.pipeline()
    assert toy.ran() == []


def test_the_output_folder_can_be_moved(toy, flows: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = flows.pipeline()
    toy.ran()
    toy.home.rename(tmp_path / "moved")
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "moved"))
    assert flows.pipeline() == first
    assert toy.ran() == []


def test_only_code_that_is_reached_matters(toy, flows: ModuleType) -> None:
    flows.pipeline()
    toy.ran()
    toy.edit("toymodels/far.py", "# a comment", "# other words")
    toy.edit("toymodels/far.py", '"""Scale a value."""', '"""Other words."""')
    toy.write({"toymodels/unrelated.py": "X = 2\n"})
    flows.pipeline()
    assert toy.ran() == []
    toy.edit("toymodels/far.py", "SCALE = 2", "SCALE = 3")
    toy.reload()
    toy.load("toytasks.flows").pipeline()
    assert toy.ran() == ALL


def test_a_library_version_matters(toy, flows: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.edit("toymodels/far.py", "SCALE = 2", "import numpy\nSCALE = 2")
    toy.reload()
    reloaded = toy.load("toytasks.flows")
    reloaded.pipeline()
    toy.ran()
    version = key_module.library_version
    monkeypatch.setattr(key_module, "library_version", lambda name: "99" if name == "numpy" else version(name))
    reloaded.pipeline()
    assert toy.ran() == ALL


def test_code_edited_under_a_running_flow_is_refused(toy, flows: ModuleType) -> None:
    flows.pipeline()
    toy.edit("toytasks/stages.py", "return context.run(config, seed, data=data)", "return context.run(config, seed + 1, data=data)")
    with pytest.raises(ValueError, match=r"toytasks/stages\.py was edited after this process had loaded it"):
        flows.pipeline()


def test_code_edited_under_a_running_flow_is_used_where_a_process_of_its_own_loads_it(toy, flows: ModuleType) -> None:
    first = flows.pipeline()
    toy.ran()
    toy.edit("toymodels/far.py", "SCALE = 2", "SCALE = 3")
    second = flows.pipeline()
    assert toy.ran() == ALL
    assert (first["model"].meta, second["model"].meta) == ({"sum": 18}, {"sum": 27})


# Failures


def test_a_configuration_error_is_not_retried(toy, stages: ModuleType, work: ModuleType) -> None:
    data = call(stages.numbers, work.NumbersConfig(), seed=0)
    with pytest.raises(StageConfigError, match=r"train: train\.steps is 7: give an even number") as caught:
        call(stages.train, work.TrainConfig(trouble="config"), data, seed=0)
    assert toy.ran() == ["numbers", "train"]
    assert isinstance(caught.value, ValueError)


def test_a_mistake_in_the_code_is_not_retried(toy, stages: ModuleType, work: ModuleType) -> None:
    data = call(stages.numbers, work.NumbersConfig(), seed=0)
    with pytest.raises(StageBug, match="KeyError"):
        call(stages.train, work.TrainConfig(trouble="bug"), data, seed=0)
    assert toy.ran() == ["numbers", "train"]


def test_an_infrastructure_fault_is_retried(toy, stages: ModuleType, work: ModuleType) -> None:
    data = call(stages.numbers, work.NumbersConfig(), seed=0)
    call(stages.train, work.TrainConfig(trouble="flaky"), data, seed=0)
    assert toy.ran() == ["numbers", "train", "train"]


def test_memory_is_retried_once_with_half_the_micro_batch(toy, stages: ModuleType, work: ModuleType) -> None:
    data = call(stages.numbers, work.NumbersConfig(), seed=0)
    toy.ran()
    call(stages.train, work.TrainConfig(trouble="oom"), data, seed=0)
    assert [line.split()[1] for line in toy.ran_lines()] == ["1.0", "0.5"]
    with pytest.raises(StageOOM):
        call(stages.train, work.TrainConfig(steps=8, trouble="always oom"), data, seed=0)
    assert [line.split()[1] for line in toy.ran_lines()] == ["1.0", "0.5"]


def test_a_stage_that_writes_nothing_fails_and_leaves_nothing(toy, stages: ModuleType, work: ModuleType) -> None:
    with pytest.raises(ValueError, match="the stage wrote no file"):
        call(stages.nothing, work.NumbersConfig(), seed=0)
    assert toy.ran() == ["nothing"]
    assert not list((toy.home / "store" / "staging").iterdir())
    assert store(toy).list() == []


def test_a_killed_process_is_retried_and_resumes(toy, flows: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = flows.pipeline()
    history = toy.history("train")
    toy.ran()
    store(toy).remove(expected["model"].digest)
    monkeypatch.setenv("POSTTRAIN_FAILPOINT", "step:5")
    assert flows.pipeline() == expected
    assert toy.ran() == ["train", "train"]
    assert toy.history("train") == history
    assert not list((toy.home / "store" / "checkpoints").iterdir())


def test_sigterm_saves_exits_143_and_the_retry_resumes(toy, stages: ModuleType, work: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    data = call(stages.numbers, work.NumbersConfig(), seed=0)
    expected = call(stages.train, work.TrainConfig(), data, seed=0)
    store(toy).remove(expected.digest)
    toy.ran()
    seen: list[process.Progress] = []

    def listen(progress: process.Progress) -> None:
        if progress.done == 3 and not any(earlier.done == 3 for earlier in seen):
            os.kill(int(toy.log.read_text().split()[-1]), signal.SIGTERM)
        seen.append(progress)

    monkeypatch.setattr(process, "on_progress", listen)
    assert call(stages.train, work.TrainConfig(pause_s=0.6), data, seed=0) == expected
    assert toy.ran() == ["train", "saved", "train"]
    log = next((toy.home / "store" / "logs").glob("train-*.log"))
    assert log.exists()
    assert seen[-1].state == "resumed"


def test_progress_and_outcomes_are_told(toy, flows: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[process.Progress] = []
    monkeypatch.setattr(process, "on_progress", seen.append)
    flows.pipeline()
    flows.pipeline()
    ends = [(progress.label, progress.state) for progress in seen if progress.state not in ("running", "waiting")]
    labels = ["numbers", "train", "summary[all]"]
    assert ends == [(label, "computed") for label in labels] + [(label, "hit") for label in labels]
    assert ("train", 6, 6) in [(progress.label, progress.done, progress.total) for progress in seen]


def test_runs_are_recorded(toy, flows: ModuleType) -> None:
    for _ in range(2):
        with registry.recording("toy", {"a": 1}):
            flows.pipeline()
    first, second = registry.runs("toy")
    assert {label: stage.outcome for label, stage in first.stages.items()} == dict.fromkeys(
        ["numbers", "train", "summary[all]"], "computed"
    )
    assert {stage.outcome for stage in second.stages.values()} == {"hit"}
    key = second.stages["train"].key
    parts = json.loads((toy.home / "store" / "keydocs" / f"{key}.json").read_text())
    assert parts["config"] == {"steps": 6}
    with registry.recording("toy", {"a": 1}), pytest.raises(StageConfigError):
        flows.pipeline(seed=5, train=toy.load("toymodels.work").TrainConfig(trouble="config"))
    assert {label: stage.outcome for label, stage in registry.runs("toy")[-1].stages.items()} == {"numbers": "computed", "train": "failed"}


def test_stages_inside_tasks_are_refused(toy, stages: ModuleType, work: ModuleType) -> None:
    @task
    def outer() -> Artifact:
        return stages.numbers(work.NumbersConfig(), seed=0)

    @flow
    def wrong() -> Artifact:
        return outer()

    with pytest.raises(RuntimeError, match="call stages from flows"):
        wrong()


# Planning


def test_planning_computes_nothing_and_says_what_would_run(toy, flows: ModuleType, work: ModuleType) -> None:
    with planning() as empty:
        flows.pipeline.fn()
    assert [(entry.label, entry.outcome, entry.reason) for entry in empty.entries] == [
        ("numbers", "miss", "it was never computed"),
        ("train", "miss", "input data will be made by numbers"),
        ("summary[all]", "miss", "input models.model will be made by train"),
    ]
    assert toy.ran() == []
    first = flows.pipeline()
    toy.ran()
    with planning() as full:
        assert flows.pipeline.fn() == first
    assert {entry.outcome for entry in full.entries} == {"hit"}
    with planning() as changed:
        flows.pipeline.fn(train=work.TrainConfig(steps=8))
    assert [(entry.outcome, entry.reason) for entry in changed.entries[:2]] == [
        ("hit", "computed before"),
        ("miss", "config.steps: 6 -> 8"),
    ]
    store(toy).remove(first["model"].digest)
    with planning() as removed:
        flows.pipeline.fn()
    assert "it is not in the store" in removed.entries[1].reason
    assert toy.ran() == []


# Several processes


def test_two_processes_compute_once(toy) -> None:
    runs = [start_flow(toy, seed=7, pause_s=0.3) for _ in range(2)]
    outputs = [run.communicate(timeout=200)[0] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], outputs
    assert sorted(toy.ran()) == sorted(ALL), outputs
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert sum("is being computed by another run" in output for output in outputs) >= 1


def test_flow_killed_its_stage_dies_and_the_next_run_takes_over_and_resumes(toy, flows: ModuleType, work: ModuleType) -> None:
    expected = flows.pipeline(seed=8)
    store(toy).remove(expected["model"].digest)
    toy.ran()
    run = start_flow(toy, seed=8, pause_s=1.0)
    wait_for(lambda: list((toy.home / "store" / "checkpoints").glob("train-*/state.json")))
    pid = int(toy.ran_lines()[0].split()[-1])
    run.kill()
    run.communicate()
    wait_for(lambda: not Path(f"/proc/{pid}").exists())
    toy.ran()
    assert flows.pipeline(seed=8) == expected
    assert toy.ran() == ["train"]
    steps = [step for step, _ in toy.history("train")]
    assert steps == [1, 2, 3, 4, 5, 6]


# What is said before the work starts


def test_too_little_memory_is_said_once_the_device_is_free(
    toy, stages: ModuleType, work: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    from models import memory

    staging = store(toy).new_staging()
    (staging / "numbers.json").write_text("[1, 2]")
    (staging / "config.json").write_text("{}")
    model = store(toy).put(staging, "policy")
    needed = type("Needed", (), {"total": 3 * 2**30})()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(memory, "shape_of", lambda folder: None)
    monkeypatch.setattr(memory, "estimate", lambda name, config, shape, lengths: needed)
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * 2**30)
    with pytest.raises(ValueError, match=r"train needs about 3\.0 GiB of memory and 2\.0 GiB are free"):
        call(stages.train, work.TrainConfig(), model, seed=0)
    monkeypatch.setattr(memory, "available_bytes", lambda: 4 * 2**30)
    call(stages.train, work.TrainConfig(), model, seed=0)
    assert toy.ran() == ["train"]
