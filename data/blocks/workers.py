"""Processes that work on shards of rows side by side. What passes between them and this process are paths of files, a line each."""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, Self

from data.bugs import BUGS

_PROGRAM = "data.blocks.worker"
_QUEUED = 2  # tasks given to a process at a time: the next one waits for it, not it for the next one
_LOOK_EVERY_S = 5.0
_LOOK_AT_OFFERS_EVERY_S = 0.05
# Sets iterate alike in every process; one thread each, since there is a process for every core.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "RAYON_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# What a block may raise is raised again here: the user's mistakes must stay told from ours, and from faults that pass.
_RAISED: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, FileNotFoundError, PermissionError, OSError, ImportError, MemoryError, *BUGS)
}


class WorkerProcess:
    """One worker process."""

    def __init__(self, plan: Path) -> None:
        paths = os.pathsep.join(path for path in sys.path if path)
        self.process = subprocess.Popen(
            [sys.executable, "-m", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env={**os.environ, **_ENVIRONMENT, "PYTHONPATH": paths},
        )
        self.tasks = 0
        self.at = -1
        self.working_on = ""
        self._rest = b""
        self.send(plan)

    def send(self, path: Path) -> None:
        """Give it a task, or first the plan."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(os.fsencode(path) + b"\n")
        except BrokenPipeError:
            return  # it is dead, which the end of its output tells with the reason

    def messages(self) -> list[dict[str, Any]] | None:
        """What it has said since; None where it is dead."""
        assert self.process.stdout is not None
        chunk = os.read(self.process.stdout.fileno(), 65536)
        if not chunk:
            return None
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        return [json.loads(line) for line in lines]

    def end(self) -> None:
        """Kill it."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Offering(Protocol):
    """A way to have tasks done on other hosts (data/blocks/offers.py)."""

    @property
    def open(self) -> Mapping[int, Path]: ...

    @property
    def has_room(self) -> bool: ...

    def begin(self, plan: Path, labels: list[str]) -> None: ...

    def offer(self, task: Path) -> None: ...

    def take_back(self) -> Path | None: ...

    def messages(self) -> list[dict[str, Any]]: ...


class Workers:
    """Up to ``count`` worker processes, started as work comes; leaving the block ends them. ``labels`` names the blocks in errors.

    ``offers``: processes on other hosts, which are given what those here have no hands for.
    """

    def __init__(self, count: int, plan: Path, labels: list[str], offers: Offering | None = None) -> None:
        self.count, self.plan, self.labels, self.offers = count, plan, labels, offers
        if offers is not None:
            offers.begin(plan, labels)
        self._processes: list[WorkerProcess] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self._processes:
            process.end()
        self._selector.close()

    def run(self, tasks: Iterable[Path], done: Callable[[Path], None]) -> None:
        """Have all tasks done, in any order; ``done`` gets the path of each result.

        Raises:
            ChildProcessError: a process died; the message names the block.
            Exception: of the kind that a block raised, where that is one of Python's own.
        """
        waiting = iter(tasks)
        more = True
        while True:
            while more and (process := self._free()):
                more = self._give(process, next(waiting, None))
            while more and self.offers is not None and self.offers.has_room:
                more = self._offer(next(waiting, None))
            if self.offers is not None and not more and (idle := self._free(idle_only=True)):
                self._give(idle, self.offers.take_back())
            if not any(process.tasks for process in self._processes) and not (self.offers and self.offers.open):
                return
            for result in self._results():
                done(result)

    def _give(self, process: WorkerProcess, task: Path | None) -> bool:
        if task is not None:
            process.tasks += 1
            process.send(task)
        return task is not None

    def _offer(self, task: Path | None) -> bool:
        assert self.offers is not None
        if task is not None:
            self.offers.offer(task)
        return task is not None

    def _free(self, idle_only: bool = False) -> WorkerProcess | None:
        idle = next((process for process in self._processes if not process.tasks), None)
        if idle is None and len(self._processes) < self.count:
            idle = WorkerProcess(self.plan)
            self._processes.append(idle)
            self._selector.register(idle.process.stdout, selectors.EVENT_READ, idle)  # type: ignore[arg-type]
        return idle or next((process for process in self._processes if process.tasks < _QUEUED and not idle_only), None)

    def _results(self) -> Iterator[Path]:
        for message in self.offers.messages() if self.offers is not None else ():
            if "failed" in message:
                raise self._fault(self._block(message["at"]), message["failed"])
            yield Path(message["done"])
        for key, _ in self._selector.select(_LOOK_EVERY_S if self.offers is None or not self.offers.open else _LOOK_AT_OFFERS_EVERY_S):
            process: WorkerProcess = key.data
            messages = process.messages()
            if messages is None:
                raise self._death(process)
            for message in messages:
                if "failed" in message:
                    raise self._fault(self._block(process.at), message["failed"])
                if "at" in message:
                    process.at, process.working_on = message["at"], message["task"]
                else:
                    process.tasks -= 1
                    yield Path(message["done"])

    def _block(self, at: int) -> str:
        return f"block {self.labels[at]}" if at >= 0 else "the blocks"

    def _death(self, process: WorkerProcess) -> Exception:
        status = process.process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        rows = process.working_on or "its first shard"
        return ChildProcessError(f"a worker process of {self._block(process.at)} {how}, at the rows of {rows}")

    def _fault(self, where: str, failed: dict[str, Any]) -> Exception:
        kind = next((_RAISED[name] for name in failed["kinds"] if name in _RAISED), RuntimeError)
        print(failed["traceback"], file=sys.stderr, flush=True)
        named = "" if kind is ValueError else f"{failed['kinds'][0]}: "
        return kind(f"{where}: {named}{failed['message']}")


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
