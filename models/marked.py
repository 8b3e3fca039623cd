"""Processes that a stage's process started, in whatever session they are: they inherit a mark in their environment."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path

MARK = "POSTTRAIN_PROCESS_MARK"  # in the environment of a stage's process and of all it starts


def marked(mark: str) -> list[int]:
    """Ids of the living processes with this mark, without the caller's own."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                environment = (folder / "environ").read_bytes()
            except OSError:
                continue  # it ended, or is another user's
            if f"{MARK}={mark}".encode() in environment:
                found.append(int(folder.name))
    return found


def kill_marked(mark: str, signum: int = signal.SIGKILL) -> None:
    """Signal every process with the mark."""
    for pid in marked(mark):
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            logging.getLogger(__name__).debug("process %d ended before signal %d", pid, signum)
