"""Tasks offered to processes on other hosts, through a folder that all of them see: what passes between them are paths of files.

    0-plan.json          {"plan", "labels"}: of the first pool of workers of a stage
    0-00003.offer        {"task"}: path of the task
    0-00003.claim        locked by whoever does it
    0-00003.done         {"done": path of the result}, or {"failed": ..., "at": block} as a worker says it
"""

import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from data.blocks.workers import WorkerProcess
from data.claims import claim

POLL_S = 0.05
WRITTEN = ("kept", "values", "rejected", "result")  # what a task has a worker write
EACH = 2  # tasks offered for each process that is there to take them: the next one waits for it


class Offers:
    """The side that offers. ``takers``: how many processes may take."""

    def __init__(self, folder: Path, takers: int) -> None:
        self.folder, self.takers = folder, takers
        self.pool = -1
        self.count = 0
        self.open: dict[int, Path] = {}

    def begin(self, plan: Path, labels: list[str]) -> None:
        """A new pool of workers, with its plan."""
        self.pool += 1
        self.count = 0
        _write(self.folder / f"{self.pool}-plan.json", {"plan": str(plan), "labels": labels})

    @property
    def has_room(self) -> bool:
        """True while another task may be offered."""
        return len(self.open) < EACH * self.takers

    def offer(self, task: Path) -> None:
        """Let somebody take a task."""
        self.open[self.count] = task
        _write(self._file(self.count, "offer"), {"task": str(task)})
        self.count += 1

    def take_back(self) -> Path | None:
        """The first task that nobody is doing, also where somebody has died over it; from now on it is not on offer."""
        for number in list(self.open):
            with claim(self._file(number, "claim")) as free:
                if free and not self._file(number, "done").exists():
                    self._file(number, "offer").unlink()
                    return self.open.pop(number)
        return None

    def messages(self) -> list[dict[str, Any]]:
        """What those who took tasks have said since: done, or failed."""
        found = []
        for number in list(self.open):
            path = self._file(number, "done")
            if path.exists():
                found.append(json.loads(path.read_text(encoding="utf-8")))
                del self.open[number]
        return found

    def _file(self, number: int, kind: str) -> Path:
        return self.folder / f"{self.pool}-{number:05d}.{kind}"


def take_offers(folder: Path, tick: Callable[[], None]) -> None:
    """Do what is offered in a folder, one task at a time, until ``tick`` raises: the side that takes."""
    processes: dict[str, WorkerProcess] = {}
    try:
        while True:
            tick()
            if not any(_done(folder, offer, processes) for offer in sorted(folder.glob("*.offer"))):
                time.sleep(POLL_S)
    finally:
        for process in processes.values():
            process.end()


def _done(folder: Path, offer: Path, processes: dict[str, WorkerProcess]) -> bool:
    """Whether there was something to do."""
    done = offer.with_suffix(".done")
    if done.exists():
        return False
    with claim(offer.with_suffix(".claim")) as mine:
        if not mine or done.exists() or not offer.exists():
            return False
        task = Path(json.loads(offer.read_text(encoding="utf-8"))["task"])
        pool = offer.name.partition("-")[0]
        if pool not in processes:
            processes[pool] = WorkerProcess(Path(json.loads((folder / f"{pool}-plan.json").read_text(encoding="utf-8"))["plan"]))
        _write(done, _answer(processes[pool], task, f".{platform.node()}-{os.getpid()}"))
    return True


def _answer(process: WorkerProcess, task: Path, suffix: str) -> dict[str, Any]:
    """Have a task done, in files of this process's own: one that has died may leave a worker that still writes."""
    content = json.loads(task.read_text(encoding="utf-8"))
    own = Path(f"{task}{suffix}")
    own.write_text(json.dumps(content | {kind: f"{content[kind]}{suffix}" for kind in WRITTEN}), encoding="utf-8")
    process.send(own)
    message = _last_word(process, task)
    own.unlink()
    if "failed" in message:
        return message
    for kind in WRITTEN:
        written = Path(f"{content[kind]}{suffix}")
        if written.exists():  # values are there for surveys only
            os.replace(written, content[kind])
    return {"done": content["result"]}


def _last_word(process: WorkerProcess, task: Path) -> dict[str, Any]:
    at = -1
    while (messages := process.messages()) is not None:
        for message in messages:
            if "at" not in message:
                return message | {"at": at}
            at = message["at"]
    raise ChildProcessError(f"a worker process ended at {task}")


def _write(path: Path, content: dict[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    part.write_text(json.dumps(content), encoding="utf-8")
    os.replace(part, path)
