"""How much the texts of a group differ from each other: of one prompt's samples, or of a fixed block of prompts.

Axes: ``R`` texts of a group, ``D`` dimensions of an embedding.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from data.blocks.base import Row
from data.blocks.repetition import tokens_of
from data.blocks.semantic import Semantic, SemanticSettings
from data.forms import Example

if TYPE_CHECKING:
    from sacrebleu.metrics.bleu import BLEU

Tokens = Sequence[str]


def ngrams(tokens: Tokens, n: int) -> list[tuple[str, ...]]:
    """All runs of n tokens, in order."""
    return list(zip(*(tokens[start:] for start in range(n)), strict=False))


def cut_tokens(text: str, most: int) -> list[str]:
    """The first words and signs of a text, case folded. Longer texts repeat more words whoever writes them: compared cut alike."""
    return tokens_of(text[: most * 64].casefold())[:most]


def distinct(group: Sequence[Tokens], n: int) -> float:
    """Different n-grams over all n-grams of a group; 0 where there is none.

    By hand: (a b a), (a b): distinct-1 is 2 / 5, distinct-2 2 / 3.

    Source: Li et al. 2016, section 5.
    """
    grams = list(chain.from_iterable(ngrams(tokens, n) for tokens in group))
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(group: Sequence[Tokens]) -> float:
    """Mean BLEU-4 of each text against the others of its group, 0 to 1: 1 where all are the same.

    Sentence BLEU of sacrebleu, exponential smoothing, over the n-gram orders that a short text has.

    Raises:
        ValueError: fewer than two texts.

    Source: Zhu et al. 2018 (Texygen), section 3.
    """
    if len(group) < 2:
        raise ValueError(f"self-BLEU compares texts with each other and got {len(group)}: sample at least two")
    texts = [" ".join(tokens) for tokens in group]
    return sum(_bleu().sentence_score(text, [*texts[:i], *texts[i + 1 :]]).score for i, text in enumerate(texts)) / (100 * len(texts))


@cache
def _bleu() -> "BLEU":
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize="none", effective_order=True)


@cache
def _embedder() -> Semantic:
    return Semantic(SemanticSettings(part="answers"))


def embeddings(texts: Sequence[str]) -> np.ndarray:
    """The hashed embedding of each text, of length 1: ``[R, D]``. All texts without words share a dimension of their own."""
    rows = [Row(0, "", 0, Example(prompt=(), completion=text)) for text in texts]
    hashed_RD = _embedder().describe(rows).astype(np.float64)
    wordless_R = ~hashed_RD.any(axis=1)
    embedding_RD = np.column_stack([hashed_RD, wordless_R])
    return embedding_RD / np.linalg.norm(embedding_RD, axis=1, keepdims=True)


def semantic_spread(embedding_RD: np.ndarray) -> float:
    """Mean cosine distance of all pairs of a group, 0 where all texts use the same words, about 1 where none is shared.

    1 - (|sum of embeddings|^2 - R) / (R (R - 1)), for embeddings of length 1. By hand: two orthogonal ones: 1 - (2 - 2) / 2 = 1.

    Raises:
        ValueError: fewer than two texts.
    """
    count = len(embedding_RD)
    if count < 2:
        raise ValueError(f"spread is between texts and got {count}: sample at least two")
    return max(0.0, 1 - float(np.sum(embedding_RD.sum(0) ** 2) - count) / (count * (count - 1)))


def most_common_opening(texts: Sequence[Tokens], n: int) -> tuple[str, ...]:
    """The first n tokens that most texts share; the first in the alphabet of several."""
    counts = Counter(tuple(tokens[:n]) for tokens in texts)
    return min(counts, key=lambda opening: (-counts[opening], opening), default=())
