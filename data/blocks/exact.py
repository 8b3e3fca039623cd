"""Exact duplicates: of rows that say the same, the first one stays."""

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from data.blocks.base import Decision, Row
from data.blocks.equal import chunks, first_equals
from data.blocks.words import ComparisonSettings, comparable, part_of

DIGEST = np.dtype((np.uint64, 2))


class ExactSettings(ComparisonSettings):
    """When two rows are exact duplicates."""


class Exact:
    """Survey: rows are the same where 128-bit digests of their comparable texts are.

    Memory of the decision: about 40 bytes a row. Two different texts share a digest with probability 2^-128 a pair.
    """

    name = "exact"
    values = DIGEST

    def __init__(self, settings: ExactSettings) -> None:
        self.settings = settings

    def describe(self, rows: Sequence[Row]) -> np.ndarray:
        """The digest of each row."""
        return digests(rows, self.settings)

    def decide(self, values: np.ndarray, seed: int) -> Decision:
        """All but the first of each digest go; ``seed`` has no part in it."""
        del seed
        key_2N = np.empty((2, len(values)), np.uint64)
        for start, chunk in chunks(values):
            key_2N[:, start : start + len(chunk)] = chunk.T
        row_E, first_E = first_equals(*key_2N)
        keep_N = np.ones(len(values), bool)
        keep_N[row_E] = False
        repeats = zip(row_E.tolist(), first_E.tolist(), strict=True)
        return Decision(keep_N, "duplicate", {row: f"repeats row {first}" for row, first in repeats})


def digests(rows: Sequence[Row], settings: ComparisonSettings) -> np.ndarray:
    """A 128-bit digest of each row's comparable text: ``[R, 2]`` uint64."""
    texts = (comparable(part_of(row, settings.part), settings) for row in rows)
    joined = b"".join(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest() for text in texts)
    return np.frombuffer(joined, np.dtype("<u8")).astype(np.uint64).reshape(len(rows), 2)
