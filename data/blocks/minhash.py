"""Near-duplicates by MinHash signatures and locality-sensitive hashing (Broder 1997; Leskovec, Rajaraman, Ullman, "Mining of Massive
Datasets", chapter 3).

Axes: ``R`` rows described, ``S`` their word n-grams, ``H`` hash functions, ``N`` all rows, ``E`` pairs of rows, ``C`` rows of a chunk.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from pydantic import Field, model_validator

from data.blocks.base import Decision, Row
from data.blocks.equal import Clusters, chunks, first_equals, release
from data.blocks.settings import BlockSettings
from data.blocks.words import PART, Part, mixed, ngram_hashes, part_of, words_of

_GRAMS_AT_ONCE = 1 << 14  # hashed within the processor's cache
_PAIRS_AT_ONCE = 1 << 14
_KEYS_AT_ONCE = 1 << 24  # band keys held in memory, 8 bytes each
_ROUNDS = 8  # leaders tried in a bucket of rows that prove not to be alike
_EMPTY = np.uint32(0xFFFFFFFF)
_STEP = np.uint64(0x9E3779B97F4A7C15)


class MinHashSettings(BlockSettings):
    """When two rows are near-duplicates: the Jaccard similarity of their sets of word n-grams is at least ``threshold``."""

    part: Part = Field(default="all", description=PART)
    threshold: float = Field(default=0.7, gt=0, lt=1, description="Jaccard similarity from which rows are near-duplicates, 0 to 1.")
    ngram_words: int = Field(default=5, ge=1, le=50, description="Length of an n-gram, in words. A shorter text is one n-gram as a whole.")
    hashes: int = Field(default=128, ge=1, le=1024, description="Most hash functions of a signature; 4 bytes a row and function on disk.")
    bands: int = Field(default=0, ge=0, description="Bands of a signature. 0: chosen with rows_per_band from threshold and miss_weight.")
    rows_per_band: int = Field(default=0, ge=0, description="Hash functions of a band. 0: chosen with bands.")
    miss_weight: float = Field(
        default=0.9,
        gt=0,
        lt=1,
        description="Weight of missed pairs above the threshold against false candidates below it where bands are chosen. High with "
        "verify, which throws false candidates out; 0.5 without.",
    )
    verify: bool = Field(
        default=True, description="Join a candidate pair only if the share of equal hash values in their signatures reaches threshold."
    )
    seed: int = Field(default=1, ge=0, description="Seed of the hash functions.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.bands) != bool(self.rows_per_band):
            raise ValueError(f"bands={self.bands}, rows_per_band={self.rows_per_band}: set both, or neither to have them chosen")
        if self.bands * self.rows_per_band > self.hashes:
            needed = self.bands * self.rows_per_band
            raise ValueError(f"bands={self.bands} of {self.rows_per_band} need {needed} hashes, more than {self.hashes}: raise hashes")
        return self

    def banding(self) -> tuple[int, int]:
        """Bands and rows a band in force."""
        if self.bands:
            return self.bands, self.rows_per_band
        return best_banding(self.threshold, self.hashes, self.miss_weight)


def candidate_probability(similarity: np.ndarray | float, bands: np.ndarray | int, rows: int) -> np.ndarray:
    """Probability that two rows of a Jaccard similarity share a band: 1 - (1 - s^r)^b.

    By hand: s = 0.8, 14 bands of 8: 1 - (1 - 0.8^8)^14 = 0.924.
    """
    return 1 - (1 - np.asarray(similarity, np.float64) ** rows) ** bands


def best_banding(threshold: float, hashes: int, miss_weight: float) -> tuple[int, int]:
    """Bands and rows that minimise miss_weight times the area of misses above the threshold plus (1 - miss_weight) times that of false
    candidates below it, both over uniform similarities.

    By hand: threshold 0.7, 128 hashes, weight 0.9: 20 bands of 6.
    """
    similarity = np.linspace(0, 1, 1001)
    above = similarity >= threshold
    best, least = (1, 1), np.inf
    for rows in range(1, hashes + 1):
        bands = np.arange(1, hashes // rows + 1)[:, None]
        found = candidate_probability(similarity, bands, rows)  # [bands, similarities]
        costs = miss_weight * (1 - found)[:, above].sum(1) + (1 - miss_weight) * found[:, ~above].sum(1)
        if costs.min() < least:
            best, least = (int(costs.argmin()) + 1, rows), costs.min()
    return best


class MinHash:
    """Survey: rows whose signatures agree in a whole band (and, with ``verify``, in enough of all) are one cluster; its first row stays.

    Similarity is not transitive, clusters are: of A ~ B ~ C only A stays, though C may differ from A by more than the threshold. Rows
    without words are never duplicates. Memory of the decision: 134 MB for band keys and about 60 bytes a row.
    """

    name = "minhash"

    def __init__(self, settings: MinHashSettings) -> None:
        self.settings = settings
        self.bands, self.rows_per_band = settings.banding()
        width = self.bands * self.rows_per_band
        self.values = np.dtype((np.uint32, width))
        generator = np.random.Generator(np.random.PCG64(settings.seed))
        self._factor_H = generator.integers(0, 2**63, width, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
        self._offset_H = generator.integers(0, 2**64, width, dtype=np.uint64)

    def describe(self, rows: Sequence[Row]) -> np.ndarray:
        """The signature of each row: ``[R, H]`` uint32, the top half of min over its n-grams g of (a_h g + b_h) modulo 2^64."""
        words = [words_of(part_of(row, self.settings.part), signs=True) for row in rows]
        gram_S, count_R = ngram_hashes(words, self.settings.ngram_words)
        signature_RH = np.full((len(rows), len(self._factor_H)), _EMPTY)
        spoken = np.flatnonzero(count_R)
        for block, start_R, grams in _blocks(count_R[spoken], gram_S):
            signature_RH[spoken[block]] = self._minima(grams, start_R)
        return signature_RH

    def _minima(self, gram_S: np.ndarray, start_R: np.ndarray) -> np.ndarray:
        least_HR = np.empty((len(self._factor_H), len(start_R)), np.uint64)
        hashed_S = np.empty_like(gram_S)
        for number, (factor, offset) in enumerate(zip(self._factor_H, self._offset_H, strict=True)):
            np.multiply(gram_S, factor, out=hashed_S)
            np.add(hashed_S, offset, out=hashed_S)
            np.minimum.reduceat(hashed_S, start_R, out=least_HR[number])
        return (least_HR >> np.uint64(32)).astype(np.uint32).T

    def decide(self, values: np.ndarray, seed: int) -> Decision:
        """All but the first row of each cluster go; ``seed`` has no part in it (the hash functions have their own)."""
        del seed
        clusters = Clusters(len(values))
        for key_N, spoken_N in self._keys(values):
            row_E, first_E = first_equals(key_N)
            spoken_E = spoken_N[row_E]
            self._join(values, clusters, row_E[spoken_E], first_E[spoken_E])
        root_N = clusters.root_N
        gone = np.flatnonzero(root_N != np.arange(len(values)))
        shared = self._similarity(values, gone, root_N[gone])
        details = {
            row: f"repeats row {root} (similarity {similarity:.2f}{'' if similarity >= self.settings.threshold else ', through others'})"
            for row, root, similarity in zip(gone.tolist(), root_N[gone].tolist(), shared.tolist(), strict=True)
        }
        keep_N = np.ones(len(values), bool)
        keep_N[gone] = False
        return Decision(keep_N, "near_duplicate", details)

    def _keys(self, values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each band a 64-bit key of every row, ``[N]``, and which rows have words; as many bands a pass as fit into memory."""
        spoken_N = np.ones(len(values), bool)
        at_once = max(1, _KEYS_AT_ONCE // max(1, len(values)))
        for first in range(0, self.bands, at_once):
            group = range(first, min(first + at_once, self.bands))
            keys = np.empty((len(group), len(values)), np.uint64)
            for start, signature_CH in chunks(values):
                here = slice(start, start + len(signature_CH))
                spoken_N[here] = ~(signature_CH == _EMPTY).all(1)
                for number, band in enumerate(group):
                    keys[number, here] = self._band_keys(signature_CH, band)
            for key_N in keys:
                yield key_N, spoken_N

    def _band_keys(self, signature_CH: np.ndarray, band: int) -> np.ndarray:
        key_C = np.zeros(len(signature_CH), np.uint64)
        for column in range(band * self.rows_per_band, (band + 1) * self.rows_per_band):
            key_C = mixed(key_C * _STEP + signature_CH[:, column])
        return key_C

    def _join(self, values: np.ndarray, clusters: Clusters, row_E: np.ndarray, first_E: np.ndarray) -> None:
        """Join each row of a bucket with its first. Those that are not alike enough try the first among themselves, a few times."""
        if not self.settings.verify:
            clusters.join(row_E, first_E)
            return
        for _ in range(_ROUNDS):
            apart_E = clusters.apart(row_E, first_E)
            row_E, first_E = row_E[apart_E], first_E[apart_E]
            if not len(row_E):
                return
            alike_E = self._similarity(values, row_E, first_E) >= self.settings.threshold
            clusters.join(row_E[alike_E], first_E[alike_E])
            row_E, first_E = _next_leaders(row_E[~alike_E], first_E[~alike_E])

    def _similarity(self, values: np.ndarray, left_E: np.ndarray, right_E: np.ndarray) -> np.ndarray:
        """Share of equal hash values of each pair, an unbiased estimate of the Jaccard similarity with deviation sqrt(s (1 - s) / H)."""
        share_E = np.empty(len(left_E))
        for start in range(0, len(left_E), _PAIRS_AT_ONCE):
            here = slice(start, start + _PAIRS_AT_ONCE)
            share_E[here] = (values[left_E[here]] == values[right_E[here]]).mean(1)
            release(values)
        return share_E


def _blocks(count_R: np.ndarray, gram_S: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Runs of rows (none without n-grams) of about the same number of n-grams: rows, where each starts in the run, and the n-grams."""
    end_R = np.cumsum(count_R)
    row = 0
    while row < len(count_R):
        begin = int(end_R[row] - count_R[row])
        last = max(row + 1, int(np.searchsorted(end_R, begin + _GRAMS_AT_ONCE, side="right")))
        rows = slice(row, last)
        yield rows, end_R[rows] - count_R[rows] - begin, gram_S[begin : int(end_R[last - 1])]
        row = last


def _next_leaders(row_E: np.ndarray, first_E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In each bucket (edges of one first row, rows in order) the first row that is left becomes the first of the others."""
    if not len(row_E):
        return row_E, first_E
    order = np.lexsort((row_E, first_E))
    row_E, first_E = row_E[order], first_E[order]
    new_E = np.ones(len(row_E), bool)
    new_E[1:] = first_E[1:] != first_E[:-1]
    leader_E = row_E[new_E][np.cumsum(new_E) - 1]
    return row_E[~new_E], leader_E[~new_E]
