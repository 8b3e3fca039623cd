"""What curation is made of: rows that pass through blocks, each of which keeps, edits or rejects them.

There are two kinds. A ``Block`` looks at one row at a time and holds nothing: any number of processes may run copies of it. A ``Survey``
must know all rows before it decides on one (deduplication, importance resampling): it first turns each row into a fixed number of values,
in any process, and then decides over the array of them all, which lies on disk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np

from data.forms import Example
from data.records import Message


@dataclass(frozen=True, slots=True)
class Row:
    """One example on its way through curation, and where it came from: source number, file, line (from 1)."""

    source: int
    file: str
    line: int
    example: Example

    @property
    def text(self) -> str:
        """All that is said, turns and answers, a line break between: what filters read."""
        return "\n".join([*(message.content for message in self.example.prompt), *self.example.answers()])


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that a block refuses: one word of reason, and what exactly was found."""

    row: Row
    reason: str
    detail: str


@runtime_checkable
class Block(Protocol):
    """Keeps (the same row), edits (another row) or rejects one row at a time. It holds settings only: the same row, the same answer."""

    name: str

    def __call__(self, row: Row) -> Row | Rejected:
        """What becomes of the row."""
        ...


@dataclass(frozen=True, slots=True)
class Decision:
    """What a survey decided: for each row in order whether it stays, and for those that go the reason and the detail by row number."""

    keep: np.ndarray
    reason: str
    details: dict[int, str]


@runtime_checkable
class Survey(Protocol):
    """Decides on each row with all rows in view, in bounded memory.

    ``values`` is the NumPy type of one row's values, such as ``np.dtype((np.uint64, 32))`` or ``np.dtype(np.float32)``.
    """

    name: str
    values: np.dtype

    def describe(self, rows: Sequence[Row]) -> np.ndarray:
        """The values of some rows, ``[rows]`` of ``values``; runs in any process, and the same row gives the same values."""
        ...

    def decide(self, values: np.ndarray, seed: int) -> Decision:
        """Decide on all rows; ``values`` is mapped from disk, in the order of the rows. Of equal rows the first one stays."""
        ...


def edited(row: Row, change: Callable[[str], str]) -> Row:
    """The row with ``change`` (text to text) applied to every turn and answer of it; the row itself where that changes nothing."""
    example = row.example

    def changed(text: str | None) -> str | None:
        return None if text is None else change(text)

    new = replace(
        example,
        prompt=tuple(Message(message.role, change(message.content)) for message in example.prompt),
        completion=changed(example.completion),
        chosen=changed(example.chosen),
        rejected=changed(example.rejected),
        labelled=changed(example.labelled),
        ranked=tuple(change(text) for text in example.ranked),
    )
    return row if new == example else replace(row, example=new)
