"""Runs a stage in a process of its own: starts it, passes its output on, notices that it hangs, ends all of it when the flow ends.

The flow's process asks a zygote (models/zygote.py), which it starts at the first stage that is not cached, and talks with it and with the
stage only through files: no pipe can fill up, and whoever is killed leaves readable files behind.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from models.marked import MARK, kill_marked
from models.run import EXIT_STOPPED
from models.worker import EXIT_BUG, EXIT_OUT_OF_MEMORY, EXIT_USER
from tasks import cancellation, claims, slot
from tasks.home import CHECKOUT, home
from tasks.pace import Pace

POLL_S = 0.05
START_TIMEOUT_S = 300.0
LOG_LINES_A_SECOND = 20.0  # every line is a row in Prefect's database
TAIL_LINES = 40

# The same in every stage's process: sets iterate alike, one numpy thread (more would have to be forked), deterministic cuBLAS,
# and no bars of libraries in the log.
ZYGOTE_ENVIRONMENT = {
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}


class StageProcessError(RuntimeError):
    """A stage's process failed. `retryable` says whether another attempt may help."""

    retryable = True

    def __init__(self, message: str, exit_code: int | None = None, tail: str = "") -> None:
        super().__init__(message)
        self.exit_code = exit_code
        self.tail = tail

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.exit_code, self.tail)  # with all its parts through process runners


class StageOOM(StageProcessError):
    """Memory ran out: retried once with half the micro-batch."""


class StageHung(StageProcessError):
    """No sign of life, or no end, within the limits: killed."""


class StageConfigError(StageProcessError, ValueError):
    """The configuration or the data is wrong, which only the user can mend."""

    retryable = False


class StageBug(StageProcessError):
    """The stage's code is wrong: another attempt would fail alike."""

    retryable = False


@dataclass(frozen=True)
class Progress:
    """What a stage is doing, for whoever shows it."""

    label: str
    state: Literal["waiting", "running", "hit", "computed", "resumed", "failed"]
    done: int = 0
    total: int = 0
    rates: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    left_s: float | None = None  # time left by the pace of this attempt, None until it can be known
    why: str = ""  # of a stage that has ended: why it was computed, or by whom


# Set by the command line to draw its bars; called in the flow's process, from the thread of the stage.
on_progress: Callable[[Progress], None] | None = None
# Set while a stage is called: shows its progress in Prefect and in the log (tasks/progress.py).
follower: ContextVar[Callable[[Progress], None] | None] = ContextVar("follower", default=None)


def tell(progress: Progress) -> None:
    """Pass progress on to whoever listens."""
    for listen in (on_progress, follower.get()):
        if listen is not None:
            listen(progress)


@dataclass(frozen=True)
class Limits:
    """How long a stage may take, in seconds: without a sign of life, in all, and to save after SIGTERM."""

    silence_s: float = 900.0
    total_s: float | None = None
    grace_s: float = 20.0


@dataclass(frozen=True)
class Result:
    """What a stage's process returned."""

    meta: dict[str, Any]
    resumed_step: int | None


# The zygote


class _ZygoteProcess:
    def __init__(self) -> None:
        log = home() / "store" / "logs" / "zygote.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "models.zygote"],
                cwd=CHECKOUT,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                bufsize=0,
                start_new_session=True,  # Ctrl-C in the terminal reaches the flow, and the flow ends its stages in order
                env={**os.environ, **ZYGOTE_ENVIRONMENT},
            )
        self.log = log

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def request(self, spec: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(os.fsencode(spec) + b"\n")

    def let_go(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()

    def close(self) -> None:
        self.let_go()
        self.process.wait()


_zygote: _ZygoteProcess | None = None
_zygote_lock = threading.Lock()


def _request(spec: Path) -> _ZygoteProcess:
    """Ask the zygote for a process, starting one if there is none or it died."""
    global _zygote
    with _zygote_lock:
        if _zygote is not None and not _zygote.alive:
            _zygote.let_go()
            _zygote = None
        if _zygote is None:
            _zygote = _ZygoteProcess()
        _zygote.request(spec)
        return _zygote


def close_zygote() -> None:
    """End the zygote of this process, and with it every stage that is still running."""
    global _zygote
    with _zygote_lock:
        if _zygote is not None:
            _zygote.close()
        _zygote = None


def _let_go_in_child() -> None:
    # A forked child of the flow must not hold the pipe whose end tells the zygote that the flow is gone.
    global _zygote, _zygote_lock
    _zygote_lock = threading.Lock()
    if _zygote is not None:
        _zygote.let_go()
        _zygote.process.returncode = 0  # not this process's to wait for
        _zygote = None


atexit.register(close_zygote)
os.register_at_fork(after_in_child=_let_go_in_child)


# One stage


def run_process(spec: Mapping[str, Any], job: Path, label: str, limits: Limits, log: Callable[[str], None]) -> Result:
    """Run a stage's process to its end. `job` is an empty folder for the files of the exchange; `spec` is described in models/worker.py.

    Raises:
        StageConfigError, StageBug: not worth another attempt. StageOOM, StageHung, StageProcessError: worth one.
    """
    mark = uuid.uuid4().hex
    spec = {**spec, "environment": {**spec["environment"], MARK: mark}}
    (job / "spec.json").write_text(json.dumps(spec), encoding="utf-8")
    watch = _Watch(spec, label, limits, log)
    with claims.noted("mark", mark):
        child = _Child(job, mark, _request(job / "spec.json"))
        try:
            status = watch.until_end(child)
        except BaseException as error:  # also the signals that Prefect raises when a run is cancelled, and Ctrl-C
            with cancellation.uninterrupted(error):
                child.end(limits.grace_s)
            raise
        finally:
            watch.read_log(last=True)
        child.kill_stragglers()
    return _outcome(status, job, label, watch)


class _Child:
    """A stage's process as seen from the flow, through the files that the zygote writes."""

    def __init__(self, job: Path, mark: str, zygote: _ZygoteProcess) -> None:
        self.job = job
        self.mark = mark
        self.zygote = zygote
        self.oom_kills = _oom_kills()

    def pid(self) -> int | None:
        return _read_json(self.job / "started.json", "pid")

    def status(self) -> int | None:
        """Exit code or minus the signal, None while it runs."""
        status = _read_json(self.job / "exit.json", "status")
        if status is None and not self.zygote.alive:
            status = _read_json(self.job / "exit.json", "status")  # it may have been its last act
            if status is None:
                raise StageProcessError(f"the process that starts stages ended; its log is {self.zygote.log}")
        if status == -signal.SIGKILL and _oom_kills() > self.oom_kills:
            return EXIT_OUT_OF_MEMORY
        return status

    def end(self, grace_s: float) -> None:
        """SIGTERM, time to save, SIGKILL; for the whole group and everything else that it started."""
        self._signal(signal.SIGTERM)
        end = time.monotonic() + grace_s
        while self._is_running() and time.monotonic() < end:
            time.sleep(POLL_S)
        self._signal(signal.SIGKILL)
        while self._is_running() and self.zygote.alive:
            time.sleep(POLL_S)

    def kill_stragglers(self) -> None:
        """Kill what is left in sessions of its own, such as the ranks of torchrun. The group itself is the zygote's to kill."""
        kill_marked(self.mark)

    def _is_running(self) -> bool:
        if (self.job / "exit.json").exists():
            return False
        pid = self.pid()
        return (pid is not None and Path(f"/proc/{pid}").exists()) or (pid is None and self.zygote.alive)

    def _signal(self, signum: int) -> None:
        pid = self._await_pid()
        if pid is not None and not (self.job / "exit.json").exists():  # until then the process id is certainly the stage's
            _kill(-pid, signum)
        kill_marked(self.mark, signum)

    def _await_pid(self) -> int | None:
        """A request cannot be taken back: wait until it was served, to end what it started."""
        while (pid := self.pid()) is None and self.zygote.alive:
            time.sleep(POLL_S)
        return pid


class _Watch:
    """Follows the log, the progress and the signs of life of a stage's process."""

    def __init__(self, spec: Mapping[str, Any], label: str, limits: Limits, log: Callable[[str], None]) -> None:
        self.label = label
        self.limits = limits
        self.log = log
        self.log_path = Path(spec["log"])
        self.checkpoints = Path(spec["checkpoints"])
        self.start = self.last_sign = time.monotonic()
        self.signs: tuple[Any, ...] = ()
        self.progress_ns = _mtime_ns(self.checkpoints / "progress.json")
        self.pace = Pace()
        self.offset = self.log_path.stat().st_size if self.log_path.exists() else 0
        self.rest = b""
        self.tail: list[str] = []
        self.budget = LOG_LINES_A_SECOND
        self.budget_at = self.start
        self.unsent = 0

    def until_end(self, child: _Child) -> int:
        """The status of the process once it ended.

        Raises:
            StageHung: it showed no sign of life, or did not end, in time. SlotLost: the device limit's slot is another's.
        """
        while True:
            slot.require()
            status = child.status()
            self.read_log()
            self._read_progress()
            if status is not None:
                return status
            self._check_time(child.pid() is not None)
            time.sleep(POLL_S)

    def _check_time(self, started: bool) -> None:
        now = time.monotonic()
        signs = (self.offset, self.progress_ns, _mtime_ns(self.checkpoints / "journal.jsonl"), started)
        if signs != self.signs:
            self.signs, self.last_sign = signs, now
        silence_s = self.limits.silence_s if started else max(START_TIMEOUT_S, self.limits.silence_s)
        if now - self.last_sign > silence_s:
            raise StageHung(f"{self.label} gave no sign of life for {silence_s:.0f} s and was killed", tail=self.text)
        if self.limits.total_s is not None and now - self.start > self.limits.total_s:
            raise StageHung(f"{self.label} did not end within {self.limits.total_s:.0f} s and was killed", tail=self.text)

    @property
    def text(self) -> str:
        """The last lines of the log."""
        return "\n".join(self.tail)

    def read_log(self, last: bool = False) -> None:
        """Send new whole lines to the run's log, within the rate; at the end also what has no line end."""
        if not self.log_path.exists():
            return
        with self.log_path.open("rb") as file:
            file.seek(self.offset)
            chunk = file.read()
        self.offset += len(chunk)
        *lines, self.rest = (self.rest + chunk).split(b"\n")
        if last and self.rest:
            lines.append(self.rest)
            self.rest = b""
        for line in lines:
            self._send(line.rpartition(b"\r")[2].decode("utf-8", errors="replace"))  # of an overwritten line, its last state
        if last and self.unsent:
            self.log(f"({self.unsent} more lines are in {self.log_path})")

    def _send(self, line: str) -> None:
        self.tail = [*self.tail, line][-TAIL_LINES:]
        now = time.monotonic()
        self.budget = min(LOG_LINES_A_SECOND, self.budget + (now - self.budget_at) * LOG_LINES_A_SECOND)
        self.budget_at = now
        if self.budget < 1:
            self.unsent += 1
            return
        self.budget -= 1
        self.log(line)

    def _read_progress(self) -> None:
        path = self.checkpoints / "progress.json"
        written_ns = _mtime_ns(path)
        if written_ns == self.progress_ns:
            return
        self.progress_ns = written_ns
        done, total, rates = (_read_json(path, name) for name in ("done", "total", "rates"))
        if done is not None:
            seconds = time.monotonic() - self.start
            tell(Progress(self.label, "running", done, total, rates, seconds, self.pace.left_s(seconds, done, total)))


def _outcome(status: int, job: Path, label: str, watch: _Watch) -> Result:
    """The result, or the error, that an ended process left."""
    if status == 0:
        result = json.loads((job / "result.json").read_text(encoding="utf-8"))
        return Result(result["meta"], result["resumed_step"])
    kind = _read_json(job / "error.json", "type")
    said = f"{label}: {_read_json(job / 'error.json', 'message')}" if kind else ""
    classes = {EXIT_USER: StageConfigError, EXIT_BUG: StageBug, EXIT_OUT_OF_MEMORY: StageOOM}
    if status in classes:
        named = said if status == EXIT_USER else f"{said} ({kind})"
        raise classes[status](named or f"{label} ran out of memory and was killed by the system", status, watch.text)
    if status in (EXIT_STOPPED, -signal.SIGTERM):
        raise StageProcessError(f"{label} was stopped by SIGTERM; what it saved is kept", EXIT_STOPPED, watch.text)
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
    raise StageProcessError(f"{said} ({kind})" if said else f"{label} {how}; its log is {watch.log_path}", status, watch.text)


# Small readings of the system


def _read_json(path: Path, name: str) -> Any:
    """One value of a JSON file that may not be there yet."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))[name]
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _mtime_ns(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _kill(pid: int, signum: int) -> None:
    """Signal a process, or a group if negative, that may have ended meanwhile."""
    try:
        if pid < 0:
            os.killpg(-pid, signum)
        else:
            os.kill(pid, signum)
    except ProcessLookupError:
        logging.getLogger(__name__).debug("process %d ended before signal %d", pid, signum)


def _oom_kills() -> int:
    """How often the kernel killed a process for memory: of this container where it says so, else of the machine."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control", "/proc/vmstat"):
        try:
            lines = Path(path).read_text().splitlines()
        except OSError:
            continue
        counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
        if counts:
            return int(counts[0])
    return 0
