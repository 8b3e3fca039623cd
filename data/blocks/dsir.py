"""Importance resampling towards a target set over hashed n-grams (DSIR, Xie et al. 2023).

Each row is a bag of word n-grams, hashed into buckets. With p the target's and q the rows' own distribution over buckets, a row's log
importance weight is the sum over its features j of log p(j) - log q(j); rows are drawn without replacement with probabilities in
proportion to their weights, by the k largest sums of log weight and Gumbel noise (section 3.3).

Axes: ``R`` rows of a chunk, ``F`` features kept of a row, ``H`` hash buckets.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from data.blocks.base import Decision, Row
from data.blocks.features import word_ngram_buckets
from data.blocks.references import reference_texts
from data.blocks.scopes import texts_in
from data.blocks.settings import SCOPE, BlockSettings, Scope, existing_file

_CHUNK_ROWS = 8_192
_HEAD = 2  # the number of features, low and high half


class DSIRSettings(BlockSettings):
    """Towards what, by which features, and how many rows are drawn."""

    scope: Scope = Field(default="document", description=SCOPE)
    target: str = Field(
        min_length=1, description="Path of texts like those wanted: .txt with a text a line, or rows (json, jsonl, csv, parquet, .gz)."
    )
    max_target_texts: int = Field(default=100_000, ge=1, description="Read at most this many texts of the target.")
    keep: Literal["share", "rows"] = Field(default="share", description="Whether keep_share or keep_rows says how many rows are drawn.")
    keep_share: float = Field(default=0.5, ge=0, le=1, description="Share of all rows that is drawn.")
    keep_rows: int = Field(default=10_000, ge=0, description="Rows that are drawn, in rows; all where there are fewer.")
    ngrams: int = Field(default=2, ge=1, le=4, description="Longest word n-gram that is a feature, in words. Paper: 2.")
    buckets: int = Field(default=10_000, ge=16, le=65_535, description="Hash buckets. Paper: 10,000.")
    max_features: int = Field(
        default=254,
        ge=16,
        le=4094,
        description="Features kept of a row; those of a longer one are evenly spread and stand for the rest too. 2 bytes a row each.",
    )
    smoothing: float = Field(
        default=1.0, gt=0, description="Added to every bucket's share of the features, in features per million: no bucket is impossible."
    )

    def paths(self) -> list[Path]:
        return [existing_file(self.target, "target")]


class DSIR:
    """Draws rows that look like the target. A survey: ``describe`` lists the hashed features of rows, ``decide`` weighs and draws."""

    name = "dsir"

    def __init__(self, settings: DSIRSettings) -> None:
        self.settings = settings
        self.values = np.dtype((np.uint16, settings.max_features + _HEAD))
        self._target_H: np.ndarray | None = None

    def prepare(self, seed: int, scratch: Path) -> None:
        """Count the target's features; writes dsir.npz. The seed changes nothing here: the target is read as it is."""
        texts = islice(reference_texts(existing_file(self.settings.target, "target"), self.settings.scope), self.settings.max_target_texts)
        count_H = np.zeros(self.settings.buckets)
        for text in texts:
            count_H += np.bincount(self._buckets(text), minlength=self.settings.buckets)
        if not count_H.sum():
            raise ValueError(f"target={self.settings.target!r} holds no words")
        np.savez(scratch / "dsir.npz", count_H=count_H)
        self.load(scratch)

    def load(self, scratch: Path) -> None:
        """Read what ``prepare`` wrote."""
        with np.load(scratch / "dsir.npz", allow_pickle=False) as stored:
            self._target_H = stored["count_H"]

    def describe(self, rows: Sequence[Row]) -> np.ndarray:
        """Of each row the number of its features and at most ``max_features`` of their buckets, in ascending order."""
        described = np.zeros((len(rows), self.settings.max_features + _HEAD), np.uint16)
        for line, row in zip(described, rows, strict=True):
            buckets = np.sort(self._buckets("\n".join(texts_in(row, self.settings.scope))))
            line[0], line[1] = len(buckets) & 0xFFFF, len(buckets) >> 16
            if len(buckets) > self.settings.max_features:
                buckets = buckets[_evenly(len(buckets), self.settings.max_features)]
            line[_HEAD : _HEAD + len(buckets)] = buckets
        return described

    def decide(self, values: np.ndarray, seed: int) -> Decision:
        """Draw rows: those with the largest log weight + Gumbel noise, which is drawn from the seed."""
        weights = self.log_weights(values)
        wanted = self.settings.keep_rows if self.settings.keep == "rows" else round(self.settings.keep_share * len(values))
        noisy = weights + np.random.default_rng(seed).gumbel(size=len(values))
        keep = np.zeros(len(values), bool)
        keep[np.argsort(-noisy, kind="stable")[:wanted]] = True
        details = {int(row): f"log weight {weights[row]:.2f}" for row in np.flatnonzero(~keep)}
        return Decision(keep, "not_drawn", details)

    def log_weights(self, values: np.ndarray) -> np.ndarray:
        """The log importance weight of each row, float32: sum over its features of log p(target) - log q(rows)."""
        if self._target_H is None:
            raise ValueError("the dsir block has not read its target yet: call prepare or load first")
        raw_H = np.zeros(self.settings.buckets)
        for _, bucket_RF, kept_RF, scale_R in self._chunks(values):
            raw_H += np.bincount(bucket_RF[kept_RF], np.broadcast_to(scale_R[:, None], kept_RF.shape)[kept_RF], self.settings.buckets)
        ratio_H = np.log(self._smoothed(self._target_H)) - np.log(self._smoothed(raw_H))
        weights = np.zeros(len(values), np.float32)
        for start, bucket_RF, kept_RF, scale_R in self._chunks(values):
            summed_R = np.where(kept_RF, ratio_H[bucket_RF], 0.0).sum(axis=1) * scale_R
            weights[start : start + len(summed_R)] = summed_R
        return weights

    def _smoothed(self, count_H: np.ndarray) -> np.ndarray:
        share_H = count_H / max(count_H.sum(), 1) + self.settings.smoothing * 1e-6
        return share_H / share_H.sum()

    def _chunks(self, values: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
        """Where a chunk starts, its buckets, which of them are features, and how many features each stands for."""
        most = self.settings.max_features
        for start in range(0, len(values), _CHUNK_ROWS):
            chunk = np.asarray(values[start : start + _CHUNK_ROWS])
            total_R = chunk[:, 0].astype(np.int64) + (chunk[:, 1].astype(np.int64) << 16)
            kept_R = np.minimum(total_R, most)
            yield start, chunk[:, _HEAD:], np.arange(most) < kept_R[:, None], total_R / np.maximum(kept_R, 1)

    def _buckets(self, text: str) -> np.ndarray:
        return word_ngram_buckets(text, self.settings.ngrams, self.settings.buckets)


def _evenly(length: int, most: int) -> np.ndarray:
    """``most`` places spread evenly over ``length``. By hand: 2 of 4 are 1 and 3."""
    return ((np.arange(most) + 0.5) * length / most).astype(np.int64)
