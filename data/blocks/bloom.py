"""Exact duplicates in memory fixed in advance: a Bloom filter, which forgets nothing and now and then remembers what it never saw."""

import math
from collections.abc import Sequence

import numpy as np
from pydantic import Field
from rbloom import Bloom as Filter

from data.blocks.base import Decision, Row
from data.blocks.equal import chunks
from data.blocks.exact import DIGEST, digests
from data.blocks.words import ComparisonSettings


class BloomSettings(ComparisonSettings):
    """When two rows are exact duplicates, and what the filter may cost."""

    capacity: int = Field(default=10_000_000, ge=1, description="Different rows that the filter is made for, in rows; more are refused.")
    false_positive_rate: float = Field(
        default=1e-4, gt=0, lt=0.5, description="Share of new rows taken for repeated ones (and so lost) when the filter is full."
    )

    def bits(self) -> int:
        """Size of the filter: m = -n ln p / (ln 2)^2 bits (Bloom 1970). By hand: n = 10^6, p = 0.01: 9,585,059 bits, 1.2 MB."""
        return math.ceil(-self.capacity * math.log(self.false_positive_rate) / math.log(2) ** 2)


class Bloom:
    """Survey: a row goes if a filter of all rows before it holds its 128-bit digest.

    The memory is that of the filter, whatever the number of rows. No repeated row stays; of new rows at most ``false_positive_rate`` go.
    """

    name = "bloom"
    values = DIGEST

    def __init__(self, settings: BloomSettings) -> None:
        self.settings = settings

    def describe(self, rows: Sequence[Row]) -> np.ndarray:
        """The digest of each row."""
        return digests(rows, self.settings)

    def decide(self, values: np.ndarray, seed: int) -> Decision:
        """Stream the digests through the filter in the order of the rows; ``seed`` has no part in it.

        Raises:
            ValueError: more different rows than ``capacity``: the stated rate would no longer hold.
        """
        del seed
        seen = self.filter()
        keep_N = np.ones(len(values), bool)
        kept = 0
        for start, chunk in chunks(values):
            for row, digest in enumerate(_integers(chunk), start=start):
                if digest in seen:
                    keep_N[row] = False
                    continue
                seen.add(digest)
                kept += 1
            if kept > self.settings.capacity:
                raise ValueError(
                    f"block bloom: {kept} different rows among the first {start + len(chunk)}, capacity is {self.settings.capacity}, so "
                    f"false_positive_rate={self.settings.false_positive_rate} would not hold. Set capacity to the number of rows"
                )
        detail = "its digest is in the filter of the rows before it"
        return Decision(keep_N, "duplicate", dict.fromkeys(np.flatnonzero(~keep_N).tolist(), detail))

    def filter(self) -> Filter:
        """An empty filter of the size that the settings ask for."""
        return Filter(self.settings.capacity, self.settings.false_positive_rate, hash_func=_itself)


def _integers(digest_C2: np.ndarray) -> list[int]:
    """Each digest as the signed 128-bit integer that the filter takes for a hash."""
    high, low = digest_C2.view(np.int64)[:, 0].tolist(), digest_C2[:, 1].tolist()
    return [(first << 64) | second for first, second in zip(high, low, strict=True)]


def _itself(digest: int) -> int:
    return digest
