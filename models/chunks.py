"""Work that is cut into chunks and survives a kill: each finished chunk is kept, and read back by the next attempt."""

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from models.run import Run, write_atomic

T = TypeVar("T")


def map_chunks(
    run: Run, name: str, items: Sequence[T], size: int, work: Callable[[int, Sequence[T]], list[Any]], part: tuple[int, int] = (0, 1)
) -> list[Any]:
    """``work(number, chunk)`` of every chunk of ``items``, the JSON lists it returns joined in order.

    ``part``: which of how many equal parts of the stage this is, for the progress that is shown.
    """
    before, parts = part
    results: list[Any] = []
    starts = range(0, len(items), size)
    for number, begin in enumerate(starts):
        kept = run.checkpoints / f"{name}-{number:05d}.json"
        if kept.exists():
            results += json.loads(kept.read_text(encoding="utf-8"))
        else:
            run.failpoint("chunk")
            result = work(number, items[begin : begin + size])
            write_atomic(kept, json.dumps(result))
            results += result
        run.progress(before * len(starts) + number + 1, parts * len(starts))
        run.stop_if_asked()
    return results
