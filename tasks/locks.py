"""Locks between processes on flock(2): the kernel drops them when their holder dies, so `kill -9` leaves none behind.

Prefect's own file locks stay for ever when their holder is killed, and a waiter can read one half written. A lock file may be removed by
whoever holds it: a process that had opened it before sees, once it has the lock, that the name is gone or another file's, and starts over.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from prefect.locking.protocol import LockManager

POLL_S = 0.1

_held: dict[Path, tuple[int, str]] = {}
_guard = threading.RLock()


def _close_in_child() -> None:
    # A forked child must not keep its parent's locks alive after the parent's death.
    for descriptor, _ in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(before=_guard.acquire, after_in_parent=_guard.release, after_in_child=lambda: (_close_in_child(), _guard.release()))


def try_lock(path: Path) -> int | None:
    """Take the lock and return its descriptor (closing it is the release), or None if another process or descriptor holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """False if the file was removed after it was opened: the next to come would lock another of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def remove_lock(path: Path) -> bool:
    """Remove a lock file unless somebody alive holds it; True if it is gone. Safe beside processes that are taking it."""
    descriptor = try_lock(path)
    if descriptor is None:
        return False
    path.unlink(missing_ok=True)
    os.close(descriptor)
    return True


def is_free(path: Path) -> bool:
    """True if nobody alive holds the lock."""
    descriptor = try_lock(path)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


def _wait(attempt: Callable[[], bool], timeout_s: float | None, on_wait: Callable[[], None] | None = None) -> bool:
    end = None if timeout_s is None else time.monotonic() + timeout_s
    waited = False
    while not attempt():
        if end is not None and time.monotonic() >= end:
            return False
        if on_wait is not None and not waited:
            on_wait()
        waited = True
        time.sleep(POLL_S)
    return True


@contextmanager
def file_lock(path: Path, on_wait: Callable[[], None] | None = None, keep: bool = True) -> Iterator[None]:
    """Hold the lock of a file, waiting for it as long as it takes; `on_wait` is called once if there is a wait.

    keep: leave the file behind; without it, names that come only once leave none.
    """
    with some_locks([path], 1, on_wait):
        try:
            yield
        finally:
            if not keep:
                path.unlink(missing_ok=True)


@contextmanager
def some_locks(paths: list[Path], count: int, on_wait: Callable[[], None] | None = None) -> Iterator[list[Path]]:
    """Hold `count` of several locks, the first that are free at the same time, and yield their paths. None is held while waiting."""
    taken: list[tuple[int, Path]] = []

    def attempt() -> bool:
        for path in paths:
            descriptor = try_lock(path) if len(taken) < count else None
            if descriptor is not None:
                taken.append((descriptor, path))
        if len(taken) == count:
            return True
        _release(taken)
        return False

    try:
        _wait(attempt, None, on_wait)
        yield [path for _, path in taken]
    finally:
        _release(taken)


def _release(taken: list[tuple[int, Path]]) -> None:
    while taken:
        os.close(taken.pop()[0])


class FlockLocks(LockManager):
    """Prefect's LockManager protocol on flock: one lock file a cache key, one holder at a time over all processes of a machine."""

    def __init__(self, folder: Path, on_wait: Callable[[str], None] | None = None) -> None:
        self.folder = Path(folder)
        self.on_wait = on_wait

    def _path(self, key: str) -> Path:
        return self.folder / f"key-{key}.lock"

    def _attempt(self, key: str, holder: str) -> bool:
        path = self._path(key)
        with _guard:
            if path in _held:
                return _held[path][1] == holder
            descriptor = try_lock(path)
            if descriptor is None:
                return False
            _held[path] = (descriptor, holder)
            return True

    def acquire_lock(self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None) -> bool:
        on_wait = (lambda: self.on_wait(key)) if self.on_wait else None  # type: ignore[misc]
        return _wait(lambda: self._attempt(key, holder), acquire_timeout, on_wait)

    async def aacquire_lock(self, key: str, holder: str, acquire_timeout: float | None = None, hold_timeout: float | None = None) -> bool:
        return await asyncio.to_thread(self.acquire_lock, key, holder, acquire_timeout, hold_timeout)

    def release_lock(self, key: str, holder: str) -> None:
        with _guard:
            path = self._path(key)
            if path not in _held or _held[path][1] != holder:
                raise ValueError(f"{holder} does not hold the lock of {key}")
            os.close(_held.pop(path)[0])

    def is_locked(self, key: str) -> bool:
        path = self._path(key)
        with _guard:
            return path in _held or not is_free(path)

    def is_lock_holder(self, key: str, holder: str) -> bool:
        with _guard:
            return self._path(key) in _held and _held[self._path(key)][1] == holder

    def wait_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return _wait(lambda: not self.is_locked(key), timeout)

    async def await_for_lock(self, key: str, timeout: float | None = None) -> bool:
        return await asyncio.to_thread(self.wait_for_lock, key, timeout)
