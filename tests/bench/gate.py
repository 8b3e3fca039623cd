"""The protocol between the driver and one side of a comparison: laps over a pair of pipes.

A side is a process that has loaded its model and stands at a gate. It answers once what it is set to. For each line "go" it runs one
lap, an update or a call of its own unchanged loop, and answers one JSON line: seconds, real units of work, peak memory. It is asleep
between laps, so that two sides can be timed in turn, A B A B, on the same cores. "go CASE" names the lap where a side can run several.
"""

import json
import os
import resource
import sys
import time
from typing import Any


class Gate:
    """A side's end of the pipes. Whatever libraries print goes to standard error."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._began: float | None = None
        self.settings: dict[str, Any] = {}  # said once, before the first lap

    def lap(self, **work: float) -> str:
        """End the lap that runs, if one does, with what it did, and wait for the next, whose case is returned.

        Ends the process when the driver is done.
        """
        _finish_device()
        now = time.perf_counter()
        answer: dict[str, Any] = {"settings": self.settings}
        if self._began is not None:
            answer = {"seconds": now - self._began, "work": work, "peak_bytes": peak_bytes()}
        self._answers.write(json.dumps(answer, default=str) + "\n")
        word, _, case = sys.stdin.readline().strip().partition(" ")
        if word != "go":
            os._exit(0)
        self._began = time.perf_counter()
        return case


def _finish_device() -> None:
    """Wait for what a GPU has been told to do: it is part of the lap."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def peak_bytes() -> int:
    """Most memory that this process has held at once, since it started: of its GPU by torch's count, else by the kernel's."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
