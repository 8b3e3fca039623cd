"""Lock files that are removed while others take them: one holder at a time all the same, and none is left."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks import locks
from tasks.home import CHECKOUT
from tasks.locks import FlockLocks, file_lock, is_free, remove_lock, try_lock

# Takes the lock as often as it can for a second; the folder `inside` exists while somebody holds it, and can be made only once.
TAKER = """
import sys, time
from pathlib import Path
from tasks.locks import remove_lock, try_lock
import os

lock, inside, takes = Path(sys.argv[1]), Path(sys.argv[2]), 0
end = time.monotonic() + 1.0
while time.monotonic() < end or not takes:
    descriptor = try_lock(lock)
    if descriptor is not None:
        inside.mkdir()
        takes += 1
        inside.rmdir()
        os.close(descriptor)
    remove_lock(lock)
print(takes)
"""


def test_two_processes_that_take_and_remove_a_lock_never_both_hold_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKER, str(tmp_path / "key-a.lock"), str(tmp_path / "inside")]
    takers = [subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    answers = [taker.communicate(timeout=60) for taker in takers]
    assert [errors for _, errors in answers] == ["", ""]
    assert all(int(takes) > 0 for takes, _ in answers)
    assert not (tmp_path / "inside").exists()


def test_a_lock_taken_on_a_removed_file_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The race of the test above, at its narrowest: between opening the file and locking it another process removes it."""
    path, flock, removed = tmp_path / "key-a.lock", locks.fcntl.flock, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append(path.unlink())
        flock(descriptor, operation)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    descriptor = try_lock(path)
    assert descriptor is not None
    assert path.exists(), "the lock is on a file that the next process does not find"
    assert not is_free(path)
    assert try_lock(path) is None


def test_a_lock_that_is_held_stays(tmp_path: Path) -> None:
    with file_lock(tmp_path / "a.lock"):
        assert not remove_lock(tmp_path / "a.lock")
    assert (tmp_path / "a.lock").exists()
    assert remove_lock(tmp_path / "a.lock")
    assert not (tmp_path / "a.lock").exists()
    with file_lock(tmp_path / "b.lock", keep=False):
        assert not is_free(tmp_path / "b.lock")
    assert not (tmp_path / "b.lock").exists()


def test_the_lock_of_a_key_may_vanish_between_two_holders(tmp_path: Path) -> None:
    holders = FlockLocks(tmp_path)
    assert holders.acquire_lock("k", "me")
    assert not remove_lock(tmp_path / "key-k.lock")
    holders.release_lock("k", "me")
    assert remove_lock(tmp_path / "key-k.lock")
    assert holders.acquire_lock("k", "you", acquire_timeout=0)
    holders.release_lock("k", "you")
