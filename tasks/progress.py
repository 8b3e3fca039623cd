"""Progress of a running stage in Prefect, in the log, and on disk for `posttrain status`: from a thread of its own.

Training never waits for it: what a stage says replaces what it said before, the thread looks at it every few seconds, and a server that is
slow or away costs the thread its few seconds and the stage nothing. The thread begins with the first word of a stage that is not cached and
ends with the stage.

    checkpoints/<stage key>/outlook.json    {"steps": "40 of 400 updates, 310 tokens/s, 3.2 s a step", "left_s": 7800.0,
                                             "place": "stage 4 of 9, about 3 h left of the run", "time": 1763712000.1}
"""

from __future__ import annotations

import contextvars
import json
import logging
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID
from weakref import WeakKeyDictionary

from data.markdown import inline
from tasks import outlook, process, provenance
from tasks.process import Progress
from tasks.story import LONGEST_NAME, STORY, run_logger
from tasks.wording import about, duration, one_line, rates_in_words

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

FIRST_AFTER_S = 2.0  # a stage that ends before that is not shown
EVERY_S = 5.0  # between two looks in the first five minutes,
EVERY_AT_MOST_S = 30.0  # and from half an hour on: each update is a row among Prefect's events
REQUEST_S = 5.0
AGAIN_AFTER_S = 30.0  # where the API was away
WAIT_AT_END_S = 2.0  # for the last value to arrive
FILE = "outlook.json"
RUN_KEY = "progress"
HEARTBEAT = "POSTTRAIN_HEARTBEAT_MIN"
DEFAULT_HEARTBEAT_MIN = 10.0


def heartbeat_s() -> float:
    """Seconds of silence after which a running stage says in the log how far it is: POSTTRAIN_HEARTBEAT_MIN minutes, or ten.

    Raises:
        ValueError: it is not a number above 0.
    """
    text = os.environ.get(HEARTBEAT, "")
    try:
        minutes = float(text) if text else DEFAULT_HEARTBEAT_MIN
    except ValueError:
        minutes = 0.0
    if not 0 < minutes < float("inf"):
        raise ValueError(f"{HEARTBEAT} is {text!r}: give the minutes between two signs of life in the log, a number above 0")
    return 60 * minutes


def steps_in_words(progress: Progress) -> str:
    """`40 of 400 updates, 310 tokens/s, 3.2 s a step`; empty while nothing is known."""
    if progress.total <= 0:
        return ""
    unit = " updates" if "step_s" in progress.rates else ""
    rates = f", {rates_in_words(progress.rates)}" if progress.rates else ""
    return f"{progress.done} of {progress.total}{unit}{rates}"


class Follower:
    """Shows one call of a stage for as long as it lasts. `hear` and `spoke` are called by the thread of the stage, and wait for nothing."""

    def __init__(self, label: str, folder: Path, view: outlook.Outlook | None) -> None:
        self.label = label
        self.name = one_line(label, LONGEST_NAME)
        self.folder = folder
        self.outlook = view
        self.heartbeat_s = heartbeat_s()
        self._logger = run_logger()
        self._changed = threading.Condition()
        self._latest: Progress | None = None
        self._heard_at = self._spoken_at = self._began = time.monotonic()
        self._last_words: str | None = None
        self._is_done = False
        self._thread: threading.Thread | None = None
        self._artifact: ProgressArtifact | None = None
        self._artifact_of_run: ProgressArtifact | None = None
        self._connection = Connection()

    # For the thread of the stage

    def hear(self, progress: Progress) -> None:
        """Take in what the stage says."""
        if progress.state not in ("waiting", "running"):
            return
        with self._changed:
            self._latest, self._heard_at = progress, time.monotonic()
        if self._thread is None:
            self._artifact = ProgressArtifact.new(f"progress-{self.label}")
            self._artifact_of_run = _artifact_of_run(self.outlook)
            run = contextvars.copy_context().run  # with Prefect's settings
            self._thread = threading.Thread(target=run, args=(self._follow,), name=f"progress of {self.name}", daemon=True)
            self._thread.start()

    def spoke(self) -> None:
        """The stage said something in the log: it is seen to be alive."""
        self._spoken_at = time.monotonic()

    def end(self, words: str, is_done: bool) -> None:
        """The stage has ended. Waits for the last value to arrive, for seconds at most, and not for an API that is away.

        words: what became of it.
        is_done: it has its artifact.
        """
        if self._thread is None or self._last_words is not None:
            return
        with self._changed:
            self._last_words, self._is_done = words, is_done
            self._changed.notify_all()
        is_away = self._artifact is not None and self._artifact.is_away
        self._thread.join(0.1 if is_away else WAIT_AT_END_S)

    # The thread

    def _follow(self) -> None:
        pause_s = FIRST_AFTER_S
        while not self._is_over(pause_s):
            self._look()
            pause_s = EVERY_S * min(max((time.monotonic() - self._began) / 300, 1.0), EVERY_AT_MOST_S / EVERY_S)
        if self._artifact is not None:
            self._show_last(self._artifact)
        self._connection.close()

    def _is_over(self, pause_s: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._last_words is not None, pause_s)

    def _look(self) -> None:
        with self._changed:
            progress, age_s = self._latest, time.monotonic() - self._heard_at
        assert progress is not None, "the thread begins with the first word"
        left_s = progress.left_s - age_s if progress.left_s is not None and progress.left_s > age_s else None
        place = self.outlook.in_words(self.label, left_s) if self.outlook else ""
        if progress.state == "running":  # whoever waits for the key would write into the folder of the run that computes it
            self._write({"steps": steps_in_words(progress), "left_s": left_s, "place": place, "time": round(time.time(), 3)})
        if time.monotonic() - self._spoken_at >= self.heartbeat_s:
            self._beat(progress, left_s, age_s)
        if self._artifact is not None and progress.state == "running":
            self._show(self._artifact, progress, left_s, place)
        if self._artifact_of_run is not None and self.outlook is not None and self.outlook.total:
            self._artifact_of_run.show(self._connection, self.outlook.percent, f"{self.outlook.done}: {inline(self.name)}, {place}")

    def _show(self, artifact: ProgressArtifact, progress: Progress, left_s: float | None, place: str) -> None:
        left = f", {about(left_s)} left" if left_s is not None else ""
        where = f" ({place})" if place else ""
        if progress.total > 0:
            percent = min(100 * progress.done / progress.total, 99.0)  # what was made is still to be written down
            artifact.show(self._connection, percent, f"{inline(self.name)}: {inline(steps_in_words(progress))}{left}{where}")
        elif artifact.id is None and not (self.folder / "progress.json").exists():  # else it begins where an attempt has saved, and tells
            artifact.show(self._connection, 0.0, f"{inline(self.name)}: started{where}")

    def _show_last(self, artifact: ProgressArtifact) -> None:
        assert self._last_words is not None
        is_long = time.monotonic() - self._began >= FIRST_AFTER_S
        if artifact.id is not None or (self._is_done and is_long):
            artifact.show(self._connection, 100.0 if self._is_done else None, inline(self._last_words), at_once=True)

    def _beat(self, progress: Progress, left_s: float | None, age_s: float) -> None:
        """A line in the log that the stage lives, and how far it is."""
        self.spoke()
        steps = steps_in_words(progress) if progress.state == "running" else "waiting"
        left = f", {about(left_s)} left" if left_s is not None else ""
        still = f", nothing new for {duration(age_s)}" if age_s >= self.heartbeat_s else ""
        self._logger.info("%s: %s%s%s", self.name, steps or "running", left, still, extra=STORY)

    def _write(self, content: dict[str, Any]) -> None:
        temporary = self.folder / f".{FILE}.tmp"
        try:
            temporary.write_text(json.dumps(content), encoding="utf-8")
            os.replace(temporary, self.folder / FILE)
        except OSError as error:  # not worth a stage
            log.debug("%s is not written: %s", self.folder / FILE, error)


@contextmanager
def following(label: str, folder: Path) -> Iterator[Follower]:
    """Show what the stage called inside says of its progress."""
    one = Follower(label, folder, outlook.current())
    token = process.follower.set(one.hear)
    try:
        yield one
    finally:
        process.follower.reset(token)
        one.end(f"{one.name} was stopped", is_done=False)  # where nobody has said how it ended


class Connection:
    """Prefect's API for one thread: opened when it is needed, a request takes its few seconds at most and is not repeated."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._client: SyncPrefectClient | None = None

    def client(self) -> SyncPrefectClient:
        """The client of this thread."""
        import httpx
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

        if self._client is None:
            self._opened.enter_context(temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0}))
            settings = {"timeout": httpx.Timeout(REQUEST_S)}
            self._client = self._opened.enter_context(get_client(sync_client=True, httpx_settings=settings))
        return self._client

    def close(self) -> None:
        """Leave the API. Called by the thread that has used it."""
        self._opened.close()


class ProgressArtifact:
    """A progress artifact of a Prefect run: made when there is something to show, and updated. Never raises."""

    def __init__(self, key: str, flow_run: UUID, task_run: UUID | None) -> None:
        self.key = key
        self.flow_run = flow_run
        self.task_run = task_run
        self.id: UUID | None = None
        self.is_away = False
        self._shown: tuple[float, str] = (0.0, "")
        self._not_before = 0.0
        self._lock = threading.Lock()

    @classmethod
    def new(cls, name: str, of_task: bool = True) -> ProgressArtifact | None:
        """For the Prefect run that the caller is part of; None outside of one."""
        from prefect.context import TaskRunContext

        flow_run, task = provenance.flow_run(), TaskRunContext.get() if of_task else None
        key = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:100].rstrip("-")
        return cls(key, flow_run.id, task.task_run.id if task else None) if flow_run is not None else None

    def show(self, connection: Connection, percent: float | None, text: str, at_once: bool = False) -> None:
        """Show a value; nothing if it is the same as before, or the API was away a moment ago.

        percent: None leaves it where it is.
        at_once: try also then.
        """
        with self._lock:
            value = (self._shown[0] if percent is None else percent, text)
            if value == self._shown or (time.monotonic() < self._not_before and not at_once):
                return
            try:
                self._send(connection, *value)
            except Exception as error:  # whatever a client raises for an API that is away or refuses
                if not self.is_away:
                    log.warning("%s is not shown in Prefect for now; the stage goes on. %s: %s", self.key, type(error).__name__, error)
                self.is_away, self._not_before = True, time.monotonic() + AGAIN_AFTER_S
            else:
                self.is_away, self._shown = False, value

    def _send(self, connection: Connection, percent: float, text: str) -> None:
        from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate

        client = connection.client()
        if self.id is not None:
            client.update_artifact(self.id, ArtifactUpdate(data=percent, description=text))
            return
        runs = {"flow_run_id": self.flow_run, "task_run_id": self.task_run}
        made = ArtifactCreate.model_validate({"type": "progress", "key": self.key, "data": percent, "description": text, **runs})
        self.id = client.create_artifact(made).id


# The run


_of_runs: WeakKeyDictionary[outlook.Outlook, ProgressArtifact] = WeakKeyDictionary()


def _artifact_of_run(view: outlook.Outlook | None) -> ProgressArtifact | None:
    """The artifact that shows how many stages of the run are done; None where its plan is not known."""
    if view is None or not view.total:
        return None
    if view not in _of_runs and (made := ProgressArtifact.new(RUN_KEY, of_task=False)) is not None:
        _of_runs[view] = made
    return _of_runs.get(view)


def show_run_end(view: outlook.Outlook, words: str, is_done: bool) -> None:
    """The last value of a run's artifact, if it has one. Waits as a stage's end does."""
    artifact = _of_runs.pop(view, None)
    if artifact is None or artifact.id is None:
        return

    def show() -> None:
        connection = Connection()
        artifact.show(connection, 100.0 if is_done else None, inline(words), at_once=True)
        connection.close()

    thread = threading.Thread(target=contextvars.copy_context().run, args=(show,), name="progress of the run", daemon=True)
    thread.start()
    thread.join(0.1 if artifact.is_away else WAIT_AT_END_S)
