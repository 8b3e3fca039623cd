"""Chunked work is done once a chunk, whatever happens between."""

from collections.abc import Callable, Sequence

import pytest

from models.chunks import map_chunks
from models.run import Run, Stopped

ITEMS = list(range(7))


def test_chunks_are_numbered_cut_in_order_and_joined(run: Run):
    seen: list[tuple[int, list[int]]] = []

    def work(number: int, chunk: Sequence[int]) -> list[list[int]]:
        seen.append((number, list(chunk)))
        return [[item, item * item] for item in chunk]

    assert map_chunks(run, "squares", ITEMS, 3, work) == [[i, i * i] for i in ITEMS]
    assert seen == [(0, [0, 1, 2]), (1, [3, 4, 5]), (2, [6])]
    assert map_chunks(run, "none", [], 3, work) == [] and len(seen) == 3


def test_what_is_finished_is_not_done_again(new_run: Callable[..., Run]):
    def until(limit: int) -> Callable[[int, Sequence[int]], list[int]]:
        def work(number: int, chunk: Sequence[int]) -> list[int]:
            if number == limit:
                raise OSError("the disk went away")
            worked.append(number)
            return [-item for item in chunk]

        return work

    worked: list[int] = []
    with pytest.raises(OSError, match="went away"):
        map_chunks(new_run(), "minus", ITEMS, 2, until(2))
    assert worked == [0, 1]
    assert map_chunks(new_run(), "minus", ITEMS, 2, until(99)) == [-i for i in ITEMS]
    assert worked == [0, 1, 2, 3]
    assert map_chunks(new_run(), "other", ITEMS, 2, until(99)) == [-i for i in ITEMS], "each name has its own"
    assert worked == [0, 1, 2, 3] * 2


def test_a_stop_keeps_the_chunk_that_was_being_worked_on(new_run: Callable[..., Run]):
    first = new_run()

    def work(number: int, chunk: Sequence[int]) -> list[int]:
        first._asked_to_stop = number == 1  # SIGTERM comes while it works
        return list(chunk)

    with pytest.raises(Stopped):
        map_chunks(first, "kept", ITEMS, 2, work)
    left: list[int] = []
    assert map_chunks(new_run(), "kept", ITEMS, 2, lambda number, chunk: left.append(number) or list(chunk)) == ITEMS
    assert left == [2, 3]
