"""Work that is cut into chunks, survives a kill and can be shared out: each finished chunk is kept, and read back by whoever needs it."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from models.run import Run, write_atomic

T = TypeVar("T")
NAMED = 8  # items of a failed chunk that its error names


def map_chunks(
    run: Run,
    name: str,
    items: Sequence[T],
    size: int,
    work: Callable[[int, Sequence[T]], list[Any]],
    part: tuple[int, int] = (0, 1),
    shared: bool = True,
) -> list[Any]:
    """``work(number, chunk)`` of every chunk of ``items``, the JSON lists it returns joined in order.

    Where the run is shared, other processes that replay the stage compute some of the chunks: ``work`` must depend on nothing but its
    arguments and what the stage was given.

    ``part``: which of how many equal parts of the stage this is, for the progress that is shown. ``shared``: False where the work is not
    computing, such as asking an endpoint within a budget.
    """
    before, parts = part
    kept = [run.checkpoints / f"{name}-{number:05d}.json" for number in range(-(-len(items) // size))]
    for number in _own(run, name, kept, shared):
        chunk = items[number * size : (number + 1) * size]
        run.failpoint("chunk")
        with _naming(run, name, number, chunk):
            result = work(number, chunk)
        write_atomic(kept[number], json.dumps(result))
        run.progress(before * len(kept) + sum(path.exists() for path in kept), parts * len(kept))
        run.stop_if_asked()
    run.progress((before + 1) * len(kept), parts * len(kept))
    return [row for path in kept for row in json.loads(path.read_text(encoding="utf-8"))]


def _own(run: Run, name: str, kept: Sequence[Path], shared: bool) -> Iterator[int]:
    """The numbers of the chunks that this process has to compute."""
    if run.sharing is None:
        return (number for number, path in enumerate(kept) if not path.exists())
    return run.sharing.numbers(name, kept, shared)


@contextmanager
def _naming(run: Run, name: str, number: int, chunk: Sequence[Any]) -> Iterator[None]:
    """Errors tell what was worked on."""
    try:
        yield
    except Exception as error:
        if run.sharing is not None:
            run.sharing.refuse(name, number)
        named = [str(item.id) for item in chunk[:NAMED] if hasattr(item, "id")]
        items = ": " + ", ".join(named) + (" ..." if len(chunk) > NAMED else "") if named else ""
        error.add_note(f"(in chunk {number} of {name}, {len(chunk)} items{items})")
        raise
