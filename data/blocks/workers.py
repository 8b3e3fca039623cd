"""Processes that work on shards of rows side by side. What passes between them and this process are paths of files, a line each."""

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from data.bugs import BUGS

_PROGRAM = "data.blocks.worker"
_QUEUED = 2  # tasks given to a process at a time: the next one waits for it, not it for the next one
_LOOK_EVERY_S = 5.0
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


class _Process:
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
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


class Workers:
    """Up to ``count`` worker processes, started as work comes; leaving the block ends them. ``labels`` names the blocks in errors."""

    def __init__(self, count: int, plan: Path, labels: list[str]) -> None:
        self.count, self.plan, self.labels = count, plan, labels
        self._processes: list[_Process] = []
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
                task = next(waiting, None)
                more = task is not None
                if task is not None:
                    process.tasks += 1
                    process.send(task)
            if not any(process.tasks for process in self._processes):
                return
            for result in self._results():
                done(result)

    def _free(self) -> _Process | None:
        idle = next((process for process in self._processes if not process.tasks), None)
        if idle is None and len(self._processes) < self.count:
            idle = _Process(self.plan)
            self._processes.append(idle)
            self._selector.register(idle.process.stdout, selectors.EVENT_READ, idle)  # type: ignore[arg-type]
        return idle or next((process for process in self._processes if process.tasks < _QUEUED), None)

    def _results(self) -> Iterator[Path]:
        for key, _ in self._selector.select(_LOOK_EVERY_S):
            process: _Process = key.data
            messages = process.messages()
            if messages is None:
                raise self._death(process)
            for message in messages:
                if "failed" in message:
                    raise self._fault(process, message["failed"])
                if "at" in message:
                    process.at, process.working_on = message["at"], message["task"]
                else:
                    process.tasks -= 1
                    yield Path(message["done"])

    def _block(self, process: _Process) -> str:
        return f"block {self.labels[process.at]}" if process.at >= 0 else "the blocks"

    def _death(self, process: _Process) -> Exception:
        status = process.process.wait()
        how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with exit code {status}"
        rows = process.working_on or "its first shard"
        return ChildProcessError(f"a worker process of {self._block(process)} {how}, at the rows of {rows}")

    def _fault(self, process: _Process, failed: dict[str, Any]) -> Exception:
        kind = next((_RAISED[name] for name in failed["kinds"] if name in _RAISED), RuntimeError)
        print(failed["traceback"], file=sys.stderr, flush=True)
        named = "" if kind is ValueError else f"{failed['kinds'][0]}: "
        return kind(f"{self._block(process)}: {named}{failed['message']}")


def available_cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0))
