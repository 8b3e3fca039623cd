"""Records of runs: which recipe and config, which stages, which artifacts. What `posttrain explain`, `chat` and `artifacts gc` read.

    HOME/runs/quickstart-3.json     the record, rewritten atomically at every change
    HOME/runs/quickstart-3.lock     held by the run as long as it lives: a record that says "running" and whose lock is free was killed
    HOME/runs/in-use.lock           shared by everything that reads artifacts; `artifacts gc` waits for nobody and takes it alone
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import os
import re
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from models.run import write_atomic
from tasks.home import home
from tasks.locks import is_free, try_lock
from tasks.store import Artifact

Outcome = Literal["running", "hit", "computed", "resumed", "failed"]
Status = Literal["running", "finished", "failed", "stopped", "killed"]

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.-]*[a-z0-9])?")


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid")


class StageRecord(_Record):
    """What became of one stage in one run."""

    key: str | None = Field(description="Its stage key; names its checkpoints, history and key document")
    artifact: Artifact | None = Field(description="What it returned")
    outcome: Outcome
    seconds: float = Field(description="Time it took, in seconds")


class RunRecord(_Record):
    """One run of a recipe."""

    name: str
    recipe: str
    config: dict[str, Any]
    seed: int | None = None
    status: Status = "running"
    error: str | None = None
    started: datetime
    ended: datetime | None = None
    stages: dict[str, StageRecord] = {}

    def artifacts(self) -> dict[str, Artifact]:
        """The artifacts of the run, by stage label."""
        return {label: stage.artifact for label, stage in self.stages.items() if stage.artifact is not None}


class InUse(RuntimeError):
    """Artifacts cannot be removed while a run or a chat is using the store."""


# Reading


def folder() -> Path:
    """Where the records lie."""
    return home() / "runs"


def runs(recipe: str | None = None) -> list[RunRecord]:
    """All records, or those of one recipe, the oldest first. One that says running and whose process is gone has the status killed."""
    found = (_read(path) for path in folder().glob("*.json"))
    return sorted((run for run in found if run is not None and recipe in (None, run.recipe)), key=lambda run: (run.started, run.name))


def find(name: str) -> RunRecord:
    """The record of that name; or the latest run of the recipe of that name; or, for "latest", the latest of all.

    Raises:
        ValueError: there is none, with the names that there are.
    """
    every = runs()
    exact = [run for run in every if run.name == name]
    matching = exact or [run for run in every if name in (run.recipe, "latest")]
    if not matching:
        last = ", ".join(run.name for run in every[-5:])
        raise ValueError(f"There is no run {name!r}. " + (f"The last runs: {last}." if last else "Start with: posttrain run quickstart"))
    return matching[-1]


def report_path(name: str) -> Path:
    """Where the page of a run lies, once it has one."""
    return home() / "reports" / name / "report.html"


def is_live(name: str) -> bool:
    """True while the process of a run lives."""
    path = folder() / f"{name}.lock"
    return path.exists() and not is_free(path)


def remove(name: str) -> None:
    """Forget a run, and its page. Its artifacts stay until `artifacts gc` finds that no other run has them."""
    (folder() / f"{name}.json").unlink(missing_ok=True)
    (folder() / f"{name}.lock").unlink(missing_ok=True)
    shutil.rmtree(report_path(name).parent, ignore_errors=True)


def _read(path: Path) -> RunRecord | None:
    try:
        record = RunRecord.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # removed meanwhile, or written by another version: no record of ours
        return None
    if record.status == "running" and not is_live(record.name):
        record.status = "killed"
    return record


# Writing


class LiveRun:
    """The record of the run of this process. Every change is on disk when the call returns; threads may call at the same time."""

    def __init__(self, record: RunRecord, path: Path | None) -> None:
        self.record = record
        self._path = path
        self._lock = threading.Lock()
        self._save()

    @property
    def name(self) -> str:
        return self.record.name

    def stage(self, label: str, stage: StageRecord) -> None:
        """Set what is known of one stage."""
        with self._lock:
            self.record.stages[label] = stage
            self._save()

    def end(self, status: Status, error: str | None = None) -> None:
        """Set the final status."""
        with self._lock:
            self.record.status, self.record.error, self.record.ended = status, error, datetime.now(UTC)
            self._save()

    def _save(self) -> None:
        if self._path is not None:
            write_atomic(self._path, self.record.model_dump_json(indent=1))


_current: contextvars.ContextVar[LiveRun | None] = contextvars.ContextVar("run", default=None)


def current_run() -> LiveRun | None:
    """The run that the caller is part of."""
    return _current.get()


@contextlib.contextmanager
def recording(recipe: str, config: Mapping[str, Any] | BaseModel, seed: int | None = None) -> Iterator[LiveRun]:
    """Record a run. Inside another recording it is that one: a flow opens it in its body, whether the command line did before or not."""
    outer = _current.get()
    if outer is not None:
        yield outer
        return
    values = config.model_dump(mode="json") if isinstance(config, BaseModel) else dict(config)
    with in_use(), _claimed_name(recipe) as name:
        record = RunRecord(name=name, recipe=recipe, config=values, seed=seed, started=datetime.now(UTC))
        run = LiveRun(record, folder() / f"{name}.json")
        token = _current.set(run)
        try:
            yield run
        except BaseException as error:
            run.end("failed" if isinstance(error, Exception) else "stopped", f"{type(error).__name__}: {error}"[:2000])
            raise
        else:
            run.end("finished")
        finally:
            _current.reset(token)


@contextlib.contextmanager
def rehearsal(recipe: str) -> Iterator[None]:
    """A recording that leaves nothing behind, for a flow body that is only planned."""
    record = RunRecord(name=f"{recipe}-plan", recipe=recipe, config={}, started=datetime.now(UTC))
    token = _current.set(LiveRun(record, None))
    try:
        yield
    finally:
        _current.reset(token)


def record_stage(run: LiveRun | None, label: str, key: str | None, artifact: Artifact | None, outcome: Outcome, seconds: float) -> None:
    """Note what became of a stage; outside of a run there is nothing to note it in."""
    if run is not None:
        run.stage(label, StageRecord(key=key, artifact=artifact, outcome=outcome, seconds=round(seconds, 3)))


@contextlib.contextmanager
def _claimed_name(recipe: str) -> Iterator[str]:
    """The next free `<recipe>-<number>`, locked."""
    stem = recipe if _NAME.fullmatch(recipe) else re.sub(r"[^a-z0-9_.-]+", "-", recipe.lower()).strip("-._") or "run"
    folder().mkdir(parents=True, exist_ok=True)
    taken = [int(path.stem.rpartition("-")[2]) for path in folder().glob(f"{stem}-*.json") if path.stem.removeprefix(f"{stem}-").isdigit()]
    number = max(taken, default=0) + 1
    while (descriptor := _claim(f"{stem}-{number}")) is None:
        number += 1
    try:
        yield f"{stem}-{number}"
    finally:
        os.close(descriptor)


def _claim(name: str) -> int | None:
    """Lock a name that no record has; None if somebody was faster."""
    descriptor = try_lock(folder() / f"{name}.lock")
    if descriptor is not None and (folder() / f"{name}.json").exists():
        os.close(descriptor)
        return None
    return descriptor


# Use of the store


@contextlib.contextmanager
def in_use() -> Iterator[None]:
    """Keep `artifacts gc` away while artifacts are used. Waits, for seconds, while one is at work."""
    with _open_in_use() as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def alone(patience_s: float = 0.0) -> Iterator[None]:
    """Be the only one who uses the store.

    Raises:
        InUse: somebody else does; names the runs that live.
    """
    end = time.monotonic() + patience_s
    with _open_in_use() as descriptor:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    live = ", ".join(run.name for run in runs() if run.status == "running") or "a chat"
                    raise InUse(f"{live} is using the store; nothing was removed. Try again when it has ended.") from None
                time.sleep(0.1)
        yield


@contextlib.contextmanager
def _open_in_use() -> Iterator[int]:
    folder().mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder() / "in-use.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
