"""What a block did: rows by what became of them, and a few to look at. Tallies of parts add up, in any order, to that of the whole."""

import heapq
import random
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from data.blocks.base import Rejected, Row

SAMPLES = 20  # kept ones, and as many rejected ones, of each block
_LONGEST_TEXT = 1_000  # characters shown of a sample
_LONGEST_DETAIL = 300


@dataclass(frozen=True, slots=True, order=True)
class Sample:
    """One row as a block saw it. ``priority`` is drawn at random for every row: the lowest of all are a fair sample of all."""

    priority: float
    file: str
    line: int
    text: str
    before: str = ""  # where the block edited it
    reason: str = ""
    detail: str = ""


@dataclass
class BlockTally:
    """Counts and samples of one block. ``rejected``: rows by source number and reason; ``labels``: rows by what the block calls them."""

    rows: int = 0
    edited: int = 0
    rejected: dict[int, Counter[str]] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    kept_samples: list[Sample] = field(default_factory=list)
    rejected_samples: list[Sample] = field(default_factory=list)

    @property
    def kept(self) -> int:
        """Rows that went on, edited or not."""
        return self.rows - sum(self.reasons.values())

    @property
    def reasons(self) -> Counter[str]:
        """Rejected rows of all sources by reason."""
        return sum(self.rejected.values(), Counter())

    def note(self, before: Row, after: Row | Rejected, draw: random.Random) -> None:
        """Count one row, and keep it among the samples where the lot falls on it."""
        self.rows += 1
        priority = draw.random()
        if isinstance(after, Rejected):
            self.rejected.setdefault(before.source, Counter())[after.reason] += 1
            samples = self.rejected_samples
        else:
            self.edited += after is not before
            samples = self.kept_samples
        if is_drawn(samples, priority):
            put(samples, _sample(priority, before, after))

    def add(self, other: Self) -> None:
        """Add the tally of other rows."""
        self.rows += other.rows
        self.edited += other.edited
        self.labels += other.labels
        for source, reasons in other.rejected.items():
            self.rejected[source] = self.rejected.get(source, Counter()) + reasons
        self.kept_samples = heapq.nsmallest(SAMPLES, [*self.kept_samples, *other.kept_samples])
        self.rejected_samples = heapq.nsmallest(SAMPLES, [*self.rejected_samples, *other.rejected_samples])

    def to_plain(self) -> dict[str, Any]:
        """As JSON."""
        samples = {name: [asdict(sample) for sample in getattr(self, name)] for name in ("kept_samples", "rejected_samples")}
        return {"rows": self.rows, "edited": self.edited, "rejected": self.rejected, "labels": self.labels, **samples}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Self:
        """The tally that ``to_plain`` wrote."""
        samples = {name: [Sample(**sample) for sample in plain[name]] for name in ("kept_samples", "rejected_samples")}
        rejected = {int(source): Counter(reasons) for source, reasons in plain["rejected"].items()}
        return cls(plain["rows"], plain["edited"], rejected, Counter(plain["labels"]), **samples)


def is_drawn(samples: list[Sample], priority: float) -> bool:
    """Whether a row of this priority belongs to the samples."""
    return len(samples) < SAMPLES or priority < samples[-1].priority


def put(samples: list[Sample], sample: Sample) -> None:
    """Add to samples, which stay sorted and bounded."""
    samples[:] = heapq.nsmallest(SAMPLES, [*samples, sample])


def _sample(priority: float, before: Row, after: Row | Rejected) -> Sample:
    if isinstance(after, Rejected):
        text = after.row.text
        return Sample(priority, before.file, before.line, _cut(text), reason=after.reason, detail=after.detail[:_LONGEST_DETAIL])
    return Sample(priority, before.file, before.line, _cut(after.text), before=_cut(before.text) if after is not before else "")


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"{text[: _LONGEST_TEXT - 1]}\u2026"
