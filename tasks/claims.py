"""Which process runs a flow run: a folder for each, with a lock that the kernel drops when the process dies, however it dies.

    HOME/flow-runs/<flow run id>.<random>/claim.json     the run, its state when the claim was made, the machine
                                          lock           held by the process until it ends
                                          lease-<id>     a slot of Prefect's limit that it holds
                                          mark-<mark>    a stage's process of it, with all that this started
                                          cancelled-     it stops because its run was cancelled

A free lock proves a death; a missing heartbeat does not. `tasks.watch` reads these folders and settles what the dead left behind.
"""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks import provenance
from tasks.home import home
from tasks.locks import is_free, try_lock

Note = Literal["lease", "mark", "cancelled"]


class Claim(BaseModel):
    """What a process says of the flow run that it runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    flow_run: str
    state: str  # id of the state in which the process found the run
    host: str
    boot: str  # of the kernel: the same in all containers of a machine


_mine: dict[tuple[int, str], Path] = {}


def folder() -> Path:
    """Where the claims lie."""
    return home() / "flow-runs"


def claim() -> Path | None:
    """Claim the flow run that the caller is part of, for as long as this process lives. Again: the same. Outside of any: None."""
    run = provenance.flow_run()
    if run is None:
        return None
    key = os.getpid(), str(run.id)
    if key not in _mine or not _mine[key].exists():
        made = Claim(flow_run=str(run.id), state=str(run.state.id) if run.state else "", host=socket.gethostname(), boot=boot_id())
        _mine[key] = _published(made)
    return _mine[key]


def _published(made: Claim) -> Path:
    name = f"{made.flow_run}.{uuid.uuid4().hex[:8]}"
    hidden = folder() / f".{name}"  # not seen by others until it is locked
    hidden.mkdir(parents=True)
    # The descriptor is never closed: the lock lasts as long as the process. Programs that it starts do not inherit it.
    locked = try_lock(hidden / "lock")
    assert locked is not None, "the name is new, so nobody else can hold it"
    (hidden / "claim.json").write_text(made.model_dump_json(), encoding="utf-8")
    return hidden.rename(folder() / name)


@contextlib.contextmanager
def noted(kind: Note, name: str) -> Iterator[None]:
    """Say in this process's claim that it holds something, as long as it does: whoever finds it dead gives that back."""
    mine = claim()
    if mine is None:
        yield
        return
    path = mine / f"{kind}-{name}"
    path.touch()
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def claims() -> list[Path]:
    """All claims, of the living and the dead."""
    return sorted(folder().glob("[!.]*"))


def read(path: Path) -> Claim | None:
    """What a claim says; None if it was removed meanwhile, or written by another version."""
    try:
        return Claim.model_validate_json((path / "claim.json").read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def notes(path: Path, kind: Note) -> list[str]:
    """Names of what a process holds, or held when it died."""
    return [found.name.removeprefix(f"{kind}-") for found in sorted(path.glob(f"{kind}-*"))]


def is_dead(path: Path, made: Claim) -> bool:
    """True if the process of a claim has certainly ended.

    Locks are compared within one kernel, or with an earlier boot of the same host: on a folder that several machines share, not
    every file system shows them each other's locks.
    """
    return (made.boot == boot_id() or made.host == socket.gethostname()) and (path / "lock").exists() and is_free(path / "lock")


def boot_id() -> str:
    """Of the running kernel."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
