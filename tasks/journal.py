"""The metric journal of a stage, read while it is being written.

    {"step": 12, "time": 1763712000.1, "metrics": {"train/loss": 1.93}}      one line a report

The stage's own process appends to it. The reader copes with a file that is not there yet, a last line that is only half there, and a file
that was replaced by a shorter one because the stage resumed from a checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Point(NamedTuple):
    """One value of one metric."""

    name: str
    value: float
    step: int
    time_ms: int


def read_points(path: Path) -> list[Point]:
    """The whole history in a journal, in the order of the reports; empty if there is none."""
    return Tail(path).read()


class Tail:
    """Reads a journal piece by piece. A journal that was rewound is read again from its start, so the same point may come twice."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._inode = -1
        self._offset = 0

    def read(self) -> list[Point]:
        """The points of the lines completed since the last call.

        Raises OSError if the file is there and cannot be read.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return []
        with file:
            self._notice_rewind(file.fileno())
            file.seek(self._offset)
            complete, newline, _ = file.read().rpartition(b"\n")
        self._offset += len(complete) + len(newline)
        return [point for line in complete.splitlines() for point in _points(line)]

    def _notice_rewind(self, descriptor: int) -> None:
        stat = os.fstat(descriptor)
        if stat.st_ino != self._inode or stat.st_size < self._offset:
            self._inode, self._offset = stat.st_ino, 0


def _points(line: bytes) -> Iterator[Point]:
    """The points of one report; a line that is not one (torn by a power cut) holds none."""
    try:
        report = json.loads(line)
        step, time_ms = int(report["step"]), int(report["time"] * 1000)
        points = [Point(name, float(value), step, time_ms) for name, value in report["metrics"].items()]
    except (ValueError, KeyError, TypeError, AttributeError):
        return
    yield from points
