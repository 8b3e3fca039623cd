"""Near-duplicates by embedding: k-means clusters, then cosine similarity within each (SemDeDup, Abbas et al. 2023).

Axes: ``R`` rows described, ``N`` all rows, ``D`` dimensions, ``S`` n-grams, ``K`` clusters, ``M`` rows of one cluster.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field

from data.blocks.base import Decision, Row
from data.blocks.equal import chunks, release
from data.blocks.settings import BlockSettings
from data.blocks.words import PART, Part, ngram_hashes, part_of, words_of

if TYPE_CHECKING:
    from sklearn.cluster import MiniBatchKMeans

_ROWS_A_CLUSTER = 5000
_BLOCK_ROWS = 1024
_FEW_ROWS = 1000
_COMMON = 0.1  # length of the shared dimension, beside embeddings of length 1


class SemanticSettings(BlockSettings):
    """When two rows mean the same."""

    part: Part = Field(default="all", description=PART)
    threshold: float = Field(default=0.8, gt=0, le=1, description="Cosine of two embeddings from which the later row goes, 0 to 1.")
    dimensions: int = Field(default=512, ge=16, le=4096, description="Size of an embedding; 2 bytes a row and dimension on disk.")
    clusters: int = Field(
        default=0, ge=0, description="k-means clusters; rows are compared within one cluster only. 0: one for each 5000 rows, rounded up."
    )
    pair_words: bool = Field(default=True, description="Embed pairs of neighbouring words beside single words: order counts too.")


class Semantic:
    """Survey: a row goes if an earlier row of its cluster that stays has an embedding within the threshold.

    The embedding is lexical-semantic: it needs no model and so knows no synonyms. Words (and pairs of neighbours), with weight
    1 + ln(count), are hashed with signs into D dimensions (Weinberger et al. 2009), which keeps cosines up to a deviation of 1 / sqrt(D).
    What all rows share (stop words, a template) is taken out by subtracting the mean embedding: what the IDF does in TF-IDF. Texts of the
    same words in another order or with a few other words come out near each other; MinHash is the stricter test.

    Rows without words are never duplicates. Pairs that k-means puts into different clusters are missed, as in the paper.
    """

    name = "semantic"

    def __init__(self, settings: SemanticSettings) -> None:
        self.settings = settings
        self.values = np.dtype((np.float16, settings.dimensions))

    def describe(self, rows: Sequence[Row]) -> np.ndarray:
        """The embedding of each row, of length 1: ``[R, D]`` float16; zeros for a row without words."""
        words = [words_of(part_of(row, self.settings.part), signs=True) for row in rows]
        embedding_RD = np.zeros((len(rows), self.settings.dimensions))
        for n in (1, 2) if self.settings.pair_words else (1,):
            self._add(embedding_RD, *ngram_hashes(words, n))
        return _unit(embedding_RD).astype(np.float16)

    def _add(self, embedding_RD: np.ndarray, gram_S: np.ndarray, count_R: np.ndarray) -> None:
        row_S = np.repeat(np.arange(len(count_R)), count_R)
        order = np.lexsort((gram_S, row_S))
        row_S, gram_S = row_S[order], gram_S[order]
        new_S = np.ones(len(gram_S), bool)
        new_S[1:] = (gram_S[1:] != gram_S[:-1]) | (row_S[1:] != row_S[:-1])
        places = np.flatnonzero(new_S)
        weights = 1 + np.log(np.diff(places, append=len(gram_S)))
        sign = np.where(gram_S[places] >> np.uint64(63), 1.0, -1.0)
        column = (gram_S[places] % np.uint64(self.settings.dimensions)).astype(np.int64)
        np.add.at(embedding_RD, (row_S[places], column), sign * weights)

    def decide(self, values: np.ndarray, seed: int) -> Decision:
        """Cluster the centred embeddings (k-means, ``seed``) and let the rows of each cluster pass one after another."""
        mean_D = _mean(values)
        cluster_N = self._clustered(values, mean_D, seed)
        keep_N = np.ones(len(values), bool)
        details: dict[int, str] = {}
        order_N = np.argsort(cluster_N, kind="stable")
        borders = np.flatnonzero(np.diff(cluster_N[order_N], prepend=-2)).tolist()
        for start, end in pairwise([*borders, len(values)]):
            if cluster_N[order_N[start]] >= 0:
                details |= self._repeats(values, mean_D, order_N[start:end])
        keep_N[list(details)] = False
        return Decision(keep_N, "semantic_duplicate", details)

    def _clustered(self, values: np.ndarray, mean_D: np.ndarray, seed: int) -> np.ndarray:
        """The cluster of each row, -1 for a row without words: ``[N]``."""
        spoken_N = np.concatenate([np.empty(0, bool), *(chunk.any(1) for _, chunk in chunks(values))])
        count = min(self.settings.clusters or -(-len(values) // _ROWS_A_CLUSTER), int(spoken_N.sum()))
        cluster_N = np.where(spoken_N, 0, -1).astype(np.int32)
        if count < 2:
            return cluster_N
        model = _fitted(values, mean_D, np.flatnonzero(spoken_N), count, seed)
        for start, chunk in chunks(values):
            here = slice(start, start + len(chunk))
            cluster_N[here] = np.where(spoken_N[here], model.predict(_centred(chunk, mean_D)), -1)
        return cluster_N

    def _repeats(self, values: np.ndarray, mean_D: np.ndarray, row_M: np.ndarray) -> dict[int, str]:
        """Of the rows of one cluster, in order, those that repeat an earlier one that stays, each with what it repeats."""
        kept_rows: list[int] = []
        kept: list[np.ndarray] = []
        details: dict[int, str] = {}
        for start in range(0, len(row_M), _BLOCK_ROWS):
            rows = row_M[start : start + _BLOCK_ROWS]
            block = _centred(np.array(values[rows]), mean_D)
            release(values)
            nearest, cosine = _nearest(block, kept)
            within = block @ block.T
            stays: list[int] = []
            for place, row in enumerate(rows.tolist()):
                best, first = float(cosine[place]), int(nearest[place])
                if stays and (own := float(within[place, stays].max())) > best:
                    best, first = own, len(kept_rows) + int(within[place, stays].argmax())
                if best >= self.settings.threshold:
                    original = kept_rows[first] if first < len(kept_rows) else int(rows[stays[first - len(kept_rows)]])
                    details[row] = f"means the same as row {original} (cosine {best:.2f})"
                else:
                    stays.append(place)
            kept_rows += rows[stays].tolist()
            kept.append(block[stays])
        return details


def _unit(embedding: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(embedding, axis=1, keepdims=True)
    return embedding / np.where(length > 0, length, 1)


def _centred(chunk: np.ndarray, mean_D: np.ndarray) -> np.ndarray:
    """Embeddings without what all share, of length 1. One more dimension, the same for all, keeps rows alike that are nothing but that."""
    apart = chunk.astype(np.float32) - mean_D
    return _unit(np.concatenate([apart, np.full((len(chunk), 1), _COMMON, np.float32)], axis=1))


def _mean(values: np.ndarray) -> np.ndarray:
    """What all rows share: their mean embedding, shrunk where they are few (two rows that are alike share all they say)."""
    total_D = np.zeros(values.shape[1])
    for _, chunk in chunks(values):
        total_D += chunk.sum(0, dtype=np.float64)
    return (total_D / (len(values) + _FEW_ROWS)).astype(np.float32)


def _nearest(block: np.ndarray, kept: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """For each row of a block the place among the kept rows of the nearest of them, and its cosine (-1 where none is kept)."""
    nearest, cosine = np.zeros(len(block), np.int64), np.full(len(block), -1.0, np.float32)
    before = 0
    for part in kept:
        if len(part):
            similarity = block @ part.T
            place = similarity.argmax(1)
            best = similarity[np.arange(len(block)), place]
            nearer = best > cosine
            nearest[nearer], cosine[nearer] = before + place[nearer], best[nearer]
            before += len(part)
    return nearest, cosine


def _fitted(values: np.ndarray, mean_D: np.ndarray, spoken: np.ndarray, clusters: int, seed: int) -> "MiniBatchKMeans":
    """k-means over up to 256 rows a cluster, drawn by the seed."""
    from sklearn.cluster import MiniBatchKMeans

    draw = np.sort(np.random.default_rng(seed).permutation(spoken)[: 256 * clusters])
    model = MiniBatchKMeans(clusters, random_state=seed, init="random", batch_size=max(4096, clusters))
    for batch in _batches(draw, max(4096, clusters), seed):
        model.partial_fit(_centred(np.array(values[batch]), mean_D))
        release(values)
    return model


def _batches(rows: np.ndarray, size: int, seed: int) -> Iterator[np.ndarray]:
    """The rows in another order, in runs of at least ``size`` where there are as many."""
    shuffled = np.random.default_rng(seed + 1).permutation(rows)
    for batch in np.array_split(shuffled, max(1, len(rows) // size)):
        yield np.sort(batch)
