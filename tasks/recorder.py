"""What is to be written to the tracking store, kept as data until the store has it.

A flow must neither wait nor fail because of its tracking store. So its threads only queue records, and one background thread delivers them
in order: it tries again for as long as the store cannot be reached, and drops with a warning what the store refuses for good. Records still
undelivered when the process wants to leave go to an outbox file, and the next run delivers them first. Every record may be delivered twice
without harm: runs are looked up by `ref` before they are created, and a metric has one point a step.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from models.run import write_atomic
from tasks.journal import Point, Tail

log = logging.getLogger(__name__)

Status = Literal["FINISHED", "FAILED", "KILLED", "SCHEDULED"]

POLL_S = 5.0
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 30.0


class Unreachable(Exception):
    """The store cannot take the record now: down, locked, full, not authorised. It is tried again."""


class Refused(Exception):
    """The store will never take the record: its run was deleted, its name is not allowed. It is dropped."""


class _Record(BaseModel):
    # "constants": a loss that became NaN or infinite is what the history must show.
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")

    ref: str = Field(description="our own name of the run: known before the store has given it an id")


class Reference(BaseModel):
    """An artifact as the tracking store sees it: named and located, its bytes stay where they are."""

    model_config = ConfigDict(frozen=True)

    name: str
    kind: str
    digest: str
    location: str
    meta: dict[str, Any] = {}


class OpenRun(_Record):
    """A run begins, or goes on after a retry."""

    record: Literal["open"] = "open"
    name: str
    parent: str | None
    started_ms: int
    tags: dict[str, str]
    params: dict[str, str]
    inputs: list[Reference] = []


class AddPoints(_Record):
    """Values of metrics."""

    record: Literal["points"] = "points"
    points: list[Point]


class AddText(_Record):
    """A small file of the run; `table` says that it is shown as a table."""

    record: Literal["text"] = "text"
    path: str
    text: str
    table: bool = False


class CloseRun(_Record):
    """A run ends: what came out of it, and its last word."""

    record: Literal["close"] = "close"
    status: Status
    ended_ms: int
    tags: dict[str, str]
    output: Reference | None = None
    files: list[Path] = []


Record = OpenRun | AddPoints | AddText | CloseRun
_RECORD: TypeAdapter[Record] = TypeAdapter(Annotated[Record, Field(discriminator="record")])


class Recorder:
    """Delivers records in order from one daemon thread.

    deliver: writes one record to the store; raises Unreachable or Refused.
    prepare: called once before the first record, under the same rules.
    """

    def __init__(self, deliver: Callable[[Record], None], prepare: Callable[[], None], poll_s: float | None = None) -> None:
        self._deliver = deliver
        self._prepare = prepare
        self._poll_s = POLL_S if poll_s is None else poll_s
        self._changed = threading.Condition()
        self._queue: deque[Record] = deque()
        self._tails: dict[str, Tail] = {}
        self._prepared = self._hurried = self._left = self._silent = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    # For the flow's threads: none of these waits for the store.

    def put(self, *records: Record) -> None:
        """Queue records."""
        with self._changed:
            self._queue.extend(records)
            self._changed.notify_all()

    def follow(self, ref: str, journal: Path) -> None:
        """Forward what appears in a journal to the run, until `unfollow`."""
        with self._changed:
            self._tails[ref] = Tail(journal)

    def unfollow(self, ref: str, journal: Path | None = None) -> None:
        """Queue what the journal still holds and stop. `journal` is where it lies now, if it was moved."""
        with self._changed:
            tail = self._tails.pop(ref, None)
            if journal is not None and (tail is None or tail.path != journal):
                tail = Tail(journal)
            if tail is not None:
                self._read(ref, tail)
            self._changed.notify_all()

    def close(self, timeout_s: float) -> list[Record]:
        """Wait until everything is delivered, `timeout_s` at most, and stop the thread. What is returned was not delivered."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            self._changed.wait_for(self._idle, timeout_s)
            self._left = True
            self._changed.notify_all()
            return list(self._queue)

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything queued so far is delivered. False if that took longer than `timeout_s`."""
        with self._changed:
            return self._changed.wait_for(self._idle, timeout_s)

    # The thread

    def _idle(self) -> bool:
        return self._prepared and not self._queue

    def _run(self) -> None:
        if not self._insist(self._prepare):
            return
        with self._changed:
            self._prepared = True
            self._changed.notify_all()
        while (record := self._next()) is not None:
            if not self._insist(lambda record=record: self._deliver(record)):
                return
            with self._changed:
                self._queue.popleft()
                self._changed.notify_all()

    def _next(self) -> Record | None:
        """The oldest record; while there is none, the journals are looked at every few seconds. None when it is time to stop."""
        with self._changed:
            while not self._changed.wait_for(lambda: self._queue or self._left, self._poll_s):
                for ref, tail in self._tails.items():
                    self._read(ref, tail)
            return None if self._left else self._queue[0]

    def _read(self, ref: str, tail: Tail) -> None:
        # Called under the lock: a journal is read by one thread at a time, and its points are queued before its run is closed.
        try:
            points = tail.read()
        except OSError as error:
            log.warning("The metrics in %s cannot be read: %s", tail.path, error)
            return
        if points:
            self._queue.append(AddPoints(ref=ref, points=points))

    def _insist(self, action: Callable[[], None]) -> bool:
        """Do `action` until the store has taken or refused it; False if the process leaves before that."""
        pause_s = FIRST_RETRY_S
        while True:
            try:
                action()
                self._report_recovery()
                return True
            except Unreachable as error:
                self._report_failure(error)
            except Refused as error:
                log.warning("Not recorded in MLflow: %s", error)
                return True
            except Exception:
                # A bug of ours or of the client: tracking goes without this record, training goes on.
                log.warning("Not recorded in MLflow, unexpectedly", exc_info=True)
                return True
            with self._changed:
                if self._changed.wait_for(lambda: self._left, FIRST_RETRY_S if self._hurried else pause_s):
                    return False
            pause_s = min(2 * pause_s, LAST_RETRY_S)

    def _report_failure(self, error: Unreachable) -> None:
        if not self._silent:
            log.warning("MLflow cannot be reached; the run goes on and what it records is sent later. %s", error)
        self._silent = True

    def _report_recovery(self) -> None:
        if self._silent:
            log.warning("MLflow can be reached again.")
        self._silent = False


# The outbox


def store_undelivered(folder: Path, records: list[Record]) -> Path:
    """Write records to a new file of the outbox; it is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{records[0].ref}-{os.getpid()}-{time.time_ns()}.jsonl"
    write_atomic(path, "".join(record.model_dump_json() + "\n" for record in records))
    return path


@contextlib.contextmanager
def undelivered(path: Path) -> Iterator[list[Record]]:
    """The records of an outbox file, which is removed when the block ends without an exception. Empty while another process has it."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            yield []
            return
        yield [_RECORD.validate_json(line) for line in file]
        path.unlink(missing_ok=True)


_clock = threading.Lock()
_told_ms = 0


def now_ms() -> int:
    """Milliseconds since the epoch, as MLflow counts them. Never the same twice: run lists are sorted by it."""
    global _told_ms
    with _clock:
        _told_ms = max(int(time.time() * 1000), _told_ms + 1)
        return _told_ms
