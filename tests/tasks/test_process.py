"""A stage's process: how it ends, how it is ended, and what is left."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models import worker
from models.run import Run, Stopped, read_journal, write_atomic
from tasks import process
from tasks.home import CHECKOUT
from tasks.process import Limits, Result, StageBug, StageConfigError, StageHung, StageOOM, StageProcessError, run_process


class Job:
    """One process to run: the spec of a toy stage, and what it said."""

    def __init__(self, toy: Any, tmp_path: Path) -> None:
        self.toy = toy
        self.folder = tmp_path / "job"
        self.checkpoints = tmp_path / "checkpoints"
        self.data = tmp_path / "data"
        for folder in (self.folder, self.folder / "out", self.checkpoints, self.data):
            folder.mkdir()
        (self.data / "numbers.json").write_text("[1, 2, 3]")
        self.lines: list[str] = []

    def spec(self, entry: str = "toymodels.work:train", **config: Any) -> dict[str, Any]:
        return {
            "entry": entry,
            "config": config,
            "inputs": {"data": worker.encode_input(self.data)},
            "seed": 0,
            "stage_key": "train-0",
            "micro_batch_scale": 1.0,
            "out": str(self.folder / "out"),
            "checkpoints": str(self.checkpoints),
            "log": str(self.folder / "log.txt"),
            "root": str(self.toy.root),
            "runnable": ["toymodels"],
            "folder": str(self.toy.root),
            "environment": {"POSTTRAIN_TOY_LOG": str(self.toy.log), "POSTTRAIN_THREADS": "1"},
            "sources": {},
        }

    def run(self, limits: Limits = Limits(), **config: Any) -> Result:  # noqa: B008
        return run_process(self.spec(**config), self.folder, "train", limits, self.lines.append)


@pytest.fixture
def job(toy, tmp_path: Path) -> Job:
    return Job(toy, tmp_path)


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def pid_of(toy: Any) -> int:
    return int(wait_for(lambda: toy.log.exists() and toy.log.read_text().split())[2])


def in_thread(function: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def target() -> None:
        try:
            results.append(function())
        except BaseException as error:
            results.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    return thread, results


# Ends


def test_result_comes_back(job: Job) -> None:
    assert job.run() == Result({"sum": 12}, None)
    assert json.loads((job.folder / "out" / "model.json").read_text()) == {"step": 6, "sum": 12}


def test_heavy_libraries_are_imported_once_for_all_processes(job: Job) -> None:
    path = job.toy.root / "toymodels/work.py"
    entry = "\n\ndef look(config: TrainConfig, *, data, seed, run):\n    return {'torch': 'torch' in sys.modules, 'parent': os.getppid()}\n"
    path.write_text(path.read_text() + entry)
    results = []
    for _ in range(2):
        results.append(run_process(job.spec("toymodels.work:look"), job.folder, "look", Limits(), job.lines.append).meta)
        for name in ("started", "exit", "result"):
            (job.folder / f"{name}.json").unlink()
    assert process._zygote is not None
    assert results == [{"torch": True, "parent": process._zygote.process.pid}] * 2


@pytest.mark.parametrize(
    ("trouble", "error", "exit_code"),
    [("config", StageConfigError, 78), ("bug", StageBug, 70), ("oom", StageOOM, 77), ("flaky", StageProcessError, 1)],
)
def test_exit_codes(job: Job, trouble: str, error: type[StageProcessError], exit_code: int) -> None:
    with pytest.raises(error) as caught:
        job.run(trouble=trouble)
    assert type(caught.value) is error
    assert caught.value.exit_code == exit_code
    assert "Traceback" in caught.value.tail


def test_errors_keep_their_parts_when_copied() -> None:
    error = StageHung("m", 3, "tail")
    kind, arguments = error.__reduce__()
    copied = kind(*arguments)
    assert (str(copied), copied.exit_code, copied.tail) == ("m", 3, "tail")


def test_killed_by_someone_is_not_taken_for_lack_of_memory(job: Job) -> None:
    thread, results = in_thread(lambda: job.run(pause_s=0.5))
    os.kill(pid_of(job.toy), signal.SIGKILL)
    thread.join(60)
    assert type(results[0]) is StageProcessError
    assert "was killed by SIGKILL" in str(results[0])


def test_killed_by_the_kernel_for_memory(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = iter([3] + [4] * 10)
    monkeypatch.setattr(process, "_oom_kills", lambda: next(kills))
    thread, results = in_thread(lambda: job.run(pause_s=0.5))
    os.kill(pid_of(job.toy), signal.SIGKILL)
    thread.join(60)
    assert type(results[0]) is StageOOM


def test_sigterm_saves_and_exits_143(job: Job) -> None:
    thread, results = in_thread(lambda: job.run(pause_s=0.3))
    pid = pid_of(job.toy)
    wait_for(lambda: read_journal(job.checkpoints / "journal.jsonl"))
    os.kill(pid, signal.SIGTERM)
    thread.join(60)
    assert (type(results[0]), results[0].exit_code) == (StageProcessError, 143)
    state = json.loads((job.checkpoints / "state.json").read_text())
    assert state["step"] == read_journal(job.checkpoints / "journal.jsonl")[-1]["step"]
    assert job.toy.ran()[-1] == "saved"


def test_sigterm_before_the_loop_ends_at_once(job: Job) -> None:
    entry = "\n\ndef slow(config: TrainConfig, *, data, seed, run):\n    note('slow 1 ' + str(os.getpid()))\n    time.sleep(60)\n"
    path = job.toy.root / "toymodels/work.py"
    path.write_text(path.read_text() + entry)
    spec = job.spec("toymodels.work:slow")
    thread, results = in_thread(lambda: run_process(spec, job.folder, "slow", Limits(), job.lines.append))
    os.kill(pid_of(job.toy), signal.SIGTERM)
    thread.join(60)
    assert results[0].exit_code == 143


def test_an_entry_outside_the_runnable_packages_is_refused(job: Job) -> None:
    for entry in ("os:getcwd", "toytasks.stages:numbers", "toymodels.work"):
        with pytest.raises(StageConfigError, match="cannot be run as a stage"):
            run_process(job.spec(entry), job.folder, "x", Limits(), job.lines.append)
        for name in ("started", "exit", "error"):
            (job.folder / f"{name}.json").unlink()


def test_sources_edited_since_the_key_was_made_are_refused(job: Job) -> None:
    spec = job.spec()
    raw = (job.toy.root / "toymodels/far.py").read_bytes()
    spec["sources"] = {"toymodels/far.py": ["0" * 16, worker.meaning_digest(raw)]}
    assert run_process(spec, job.folder, "x", Limits(), job.lines.append).meta == {"sum": 12}, "other bytes, same meaning"
    for name in ("started", "exit", "result"):
        (job.folder / f"{name}.json").unlink()
    spec["sources"] = {"toymodels/far.py": ["0" * 16, "0" * 16]}
    with pytest.raises(StageConfigError, match=r"toymodels/far\.py was edited"):
        run_process(spec, job.folder, "x", Limits(), job.lines.append)


# Hangs


def test_silence_kills_the_process_and_all_it_started(job: Job) -> None:
    with pytest.raises(StageHung, match="no sign of life for 1 s"):
        job.run(Limits(silence_s=1.0, grace_s=0.5), trouble="hang")
    own, grandchild = (int(line.split()[-1]) for line in job.toy.ran_lines())
    wait_for(lambda: not is_running(own) and not is_running(grandchild))


def test_progress_is_a_sign_of_life(job: Job) -> None:
    assert job.run(Limits(silence_s=2.0), pause_s=0.8, steps=4).meta == {"sum": 8}


def test_total_time_is_limited(job: Job) -> None:
    job.run()
    for name in ("started", "exit", "result"):
        (job.folder / f"{name}.json").unlink()
    (job.checkpoints / "state.json").unlink()
    job.toy.ran()
    with pytest.raises(StageHung, match="did not end within 1 s"):
        job.run(Limits(total_s=1.0, grace_s=2.0), pause_s=0.3, steps=100)
    assert job.toy.ran() == ["train", "saved"], "it had time to save"


def test_an_interrupt_of_the_flow_ends_the_process(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(progress: process.Progress) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "on_progress", interrupt)
    with pytest.raises(KeyboardInterrupt):
        job.run(pause_s=0.3)
    assert job.toy.ran() == ["train", "saved"]


# Output


def test_output_is_passed_on_within_a_rate_and_kept_whole(job: Job) -> None:
    path = job.toy.root / "toymodels/work.py"
    loud = "\n\ndef loud(config: TrainConfig, *, data, seed, run):\n    for i in range(20000):\n        run.log(f'line {i}')\n"
    path.write_text(path.read_text() + loud + "    os.write(1, b'\\xff end without newline')\n")
    run_process(job.spec("toymodels.work:loud"), job.folder, "loud", Limits(), job.lines.append)
    assert 20 <= len(job.lines) < 300
    assert "more lines are in" in job.lines[-1]
    assert len((job.folder / "log.txt").read_bytes().splitlines()) == 20001


# Deaths of the others


def test_the_process_dies_with_the_process_that_started_it(job: Job) -> None:
    thread, results = in_thread(lambda: job.run(Limits(grace_s=5.0), pause_s=0.5))
    pid = pid_of(job.toy)
    wait_for(lambda: (job.checkpoints / "state.json").exists())
    zygote = process._zygote
    assert zygote is not None
    zygote.process.kill()
    thread.join(60)
    assert isinstance(results[0], StageProcessError)
    assert "the process that starts stages ended" in str(results[0])
    assert not is_running(pid)
    for name in ("started", "exit", "result"):
        (job.folder / f"{name}.json").unlink(missing_ok=True)
    assert job.run().resumed_step is not None, "a new one is started, and the stage resumes"


def test_a_stage_waits_for_its_predecessor_that_is_still_saving(job: Job) -> None:
    held = (job.checkpoints / "owner.lock").open("w")
    assert worker._locked(held.fileno())
    thread, results = in_thread(job.run)
    wait_for(lambda: (job.folder / "started.json").exists())
    time.sleep(1.0)
    assert not job.toy.log.exists()
    held.close()
    thread.join(60)
    assert results[0].meta == {"sum": 12}


HOLDER = """
import sys, time
from pathlib import Path
import json
from tasks.process import Limits, run_process
job = Path(sys.argv[1])
run_process(json.loads((job / "prepared.json").read_text()), job, "train", Limits(), print)
"""


@pytest.mark.parametrize("killed", ["flow, hard", "flow", "flow and zygote"])
def test_the_process_dies_with_the_flow(job: Job, killed: str) -> None:
    (job.folder / "prepared.json").write_text(json.dumps(job.spec(pause_s=0.3, steps=1000)))
    flow = subprocess.Popen([sys.executable, "-c", HOLDER, str(job.folder)], env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, cwd=CHECKOUT)
    pid = pid_of(job.toy)
    wait_for(lambda: (job.checkpoints / "state.json").exists())
    if killed == "flow and zygote":
        os.kill(int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    flow.send_signal(signal.SIGTERM if killed == "flow" else signal.SIGKILL)
    flow.wait()
    wait_for(lambda: not is_running(pid))
    assert job.toy.ran()[-1] == "saved"


def test_the_zygote_has_one_thread_and_children_are_sessions_of_their_own(job: Job) -> None:
    thread, results = in_thread(lambda: job.run(pause_s=0.3))
    pid = pid_of(job.toy)
    assert process._zygote is not None
    zygote = process._zygote.process.pid
    assert len(os.listdir(f"/proc/{zygote}/task")) == 1
    assert os.getsid(pid) == os.getpgid(pid) == pid
    assert os.getsid(zygote) != os.getsid(0)
    thread.join(60)
    assert results[0].meta == {"sum": 12}


def test_a_process_can_also_be_started_afresh(job: Job) -> None:
    """What the zygote does if a library gave it threads."""
    (job.folder / "spec.json").write_text(json.dumps(job.spec()))
    command = [sys.executable, "-m", "models.worker", str(job.folder / "spec.json"), str(os.getpid())]
    done = subprocess.run(command, cwd=CHECKOUT, start_new_session=True, check=False)
    assert done.returncode == 0
    assert json.loads((job.folder / "result.json").read_text()) == {"meta": {"sum": 12}, "resumed_step": None}


# The handle of a run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, tmp_path, "key")


def test_journal_starts_empty_unless_it_is_rewound(run: Run, tmp_path: Path) -> None:
    for step in range(4):
        run.report({"train/loss": step / 2}, step)
    run.close()
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"step": 4, "ti')  # torn by a kill
    resumed = Run(tmp_path, tmp_path, "key")
    resumed.rewind(2)
    resumed.report({"train/loss": 9.0}, 3)
    resumed.close()
    assert [(entry["step"], entry["metrics"]["train/loss"]) for entry in read_journal(tmp_path / "journal.jsonl")] == [
        (0, 0.0),
        (1, 0.5),
        (2, 1.0),
        (3, 9.0),
    ]
    assert resumed.resumed_step == 2
    anew = Run(tmp_path, tmp_path, "key")
    anew.report({"train/loss": 1.0}, 0)
    anew.close()
    assert len(read_journal(tmp_path / "journal.jsonl")) == 1


def test_progress_is_written_at_most_twice_a_second_and_at_the_end(run: Run, tmp_path: Path) -> None:
    written = []
    for done in range(1, 101):
        run.progress(done, 100, tokens_per_s=3.0)
        written.append(json.loads((tmp_path / "progress.json").read_text())["done"])
    assert written[0] == 1
    assert written[-1] == 100
    assert len(set(written)) <= 3


def test_sigterm_leaves_code_that_never_looks(run: Run) -> None:
    with pytest.raises(Stopped):
        run.on_sigterm(signal.SIGTERM, None)
    looked = Run(run.out, run.checkpoints, "key")
    assert not looked.stopping
    looked.on_sigterm(signal.SIGTERM, None)
    assert looked.stopping


def test_stopped_cannot_be_swallowed_by_accident() -> None:
    assert not issubclass(Stopped, Exception)
    assert Stopped().code == 143


def test_write_atomic_leaves_the_old_text_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a", "old")

    def fail(descriptor: int) -> None:
        raise OSError("disk")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk"):
        write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (MemoryError(), 77),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried"), 77),
        (RuntimeError("CUDA error: device-side assert"), 1),
        (OSError(28, "No space left on device"), 78),
        (FileNotFoundError("x"), 78),
        (ConnectionResetError("x"), 1),
        (KeyError("x"), 70),
        (NotImplementedError("x"), 70),
        (ValueError("out of memory is a word"), 78),
    ],
)
def test_classification(error: BaseException, exit_code: int) -> None:
    assert worker.classify(error) == exit_code


def test_inputs_survive_the_spec() -> None:
    value = {"a": [Path("/x"), 1, None], "b": {"c": Path("/y"), "path": "plain"}}
    assert worker.decode_input(json.loads(json.dumps(worker.encode_input(value)))) == value


@pytest.mark.parametrize("text", ["0", "-1", "two"])
def test_wrong_thread_count_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POSTTRAIN_THREADS", text)
    with pytest.raises(ValueError, match="POSTTRAIN_THREADS is"):
        worker.thread_count()
