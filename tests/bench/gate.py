"""The protocol between the driver and one side of a comparison: laps over a pair of pipes.

A side is a process that has loaded its model and stands at a gate. For each line "go" it runs one lap, an update or a call of its own
unchanged loop, and answers one JSON line: seconds, real units of work, peak resident memory. It is asleep between laps, so that two sides
can be timed in turn, A B A B, on the same cores.
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

    def lap(self, **work: float) -> None:
        """End the lap that runs, if one does, with what it did, and wait for the next. Ends the process when the driver is done."""
        now = time.perf_counter()
        answer: dict[str, Any] = {"ready": True}
        if self._began is not None:
            answer = {"seconds": now - self._began, "work": work, "peak_bytes": peak_bytes()}
        self._answers.write(json.dumps(answer) + "\n")
        if sys.stdin.readline().strip() != "go":
            os._exit(0)
        self._began = time.perf_counter()


def peak_bytes() -> int:
    """Most memory that this process has held at once, since it started: the kernel's own count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
