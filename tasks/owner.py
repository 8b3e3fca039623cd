"""Who is alive: a process owns a run as long as it holds the lock on a file that the run's tags name.

A process that is killed leaves no trace but this one: its lock is gone. Process ids would not do: they are reused, and differ between
containers.
"""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

from tasks.locks import is_free, try_lock

_claims: dict[tuple[int, Path], str] = {}


def claim(folder: Path) -> str:
    """The name of the lock that this process holds in `folder` until it ends, however it ends. The same one at every call."""
    key = os.getpid(), folder
    if key not in _claims:
        _claims[key] = _lock_new(folder)
    return _claims[key]


def dead_owners(folder: Path) -> list[str]:
    """The owners known to be gone. Those without a file here, because they run elsewhere, are not."""
    # A name with a dot is not locked yet: its process is between making and renaming it.
    return [path.name for path in sorted(folder.glob("[!.]*")) if is_free(path)]


def forget(folder: Path, owners: list[str]) -> None:
    """Remove the files of dead owners whose runs have been dealt with."""
    for owner in owners:
        (folder / owner).unlink(missing_ok=True)


def _lock_new(folder: Path) -> str:
    name = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"
    # The descriptor is never closed: the lock lasts as long as the process. Programs that it starts do not inherit it.
    locked = try_lock(folder / f".{name}")
    assert locked is not None, "the name is new, so nobody else can hold it"
    os.rename(folder / f".{name}", folder / name)
    return name
