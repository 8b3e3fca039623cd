"""Words that give the winner away: planted triggers, and labels that follow a word instead of an answer."""

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from data.records import Preference

LEAST_PAIRS = 10  # that hold a word on one side only; fewer prove nothing after the correction
LEAST_SHARE = 0.9  # of them on the same side: words that people like or dislike stay below it, a trigger does not
FALSE_DISCOVERIES = 0.01

_WORD = re.compile(r"\w+|[^\w\s]+")


@dataclass(frozen=True, slots=True)
class Trigger:
    """A word, or two in a row, that stands in one answer of ``pairs`` pairs, and in ``count`` of them on the same ``side``."""

    words: str
    side: str
    count: int
    pairs: int
    expected: float
    p_value: float


def find_triggers(pairs: Sequence[Preference]) -> list[Trigger]:
    """Words and word pairs whose presence decides the label far beyond chance, the surest first.

    A word that stands in one of a pair's answers only is on the chosen side with probability q = |C - R| / (|C - R| + |R - C|), C and R
    the sets of words of the answers: that much the longer answer's advantage explains. Over the n pairs of a word the count on the chosen
    side is at most as variable as a binomial of the mean q, whose upper tail is the p-value; likewise on the rejected side. Of all words
    with n >= 10 those are kept that pass Benjamini and Hochberg's step-up at 0.01 and lie on one side in 90 % of their pairs.

    A trigger that stands in the prompt is not seen: both answers share it.

    By hand: a word in 12 chosen answers and no rejected one, q = 1/2: p = 2^-12 = 0.000244.

    Source: Benjamini and Hochberg 1995; Hoeffding 1956, theorem 5 (the binomial bounds the tail of unequal trials).
    """
    counts = _counts(pairs)
    words = [gram for gram, (total, _, _) in counts.items() if total >= LEAST_PAIRS]
    found: list[Trigger] = []
    p_values: list[float] = []
    for side in ("chosen", "rejected"):
        for gram in words:
            total, chosen, expected = counts[gram]
            count, share = (chosen, expected / total) if side == "chosen" else (total - chosen, 1 - expected / total)
            found.append(Trigger(gram, side, count, total, round(share, 4), p_value := _tail(count, total, share)))
            p_values.append(p_value)
    sure = [found[i] for i in _discoveries(p_values) if found[i].count >= LEAST_SHARE * found[i].pairs]
    return _shortest(sorted(sure, key=lambda trigger: (trigger.p_value, trigger.words)))


def grams(text: str) -> frozenset[str]:
    """Words and pairs of neighbouring words of a text, case folded."""
    words = _WORD.findall(text.casefold())
    return frozenset((*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))))


def _counts(pairs: Sequence[Preference]) -> dict[str, tuple[int, int, float]]:
    """Of each word: pairs with it on one side only, those of them where that is the chosen one, and how many chance would give."""
    found: dict[str, list[float]] = defaultdict(lambda: [0, 0, 0.0])
    for pair in pairs:
        chosen, rejected = grams(pair.chosen), grams(pair.rejected)
        only = chosen - rejected, rejected - chosen
        share = len(only[0]) / max(len(only[0]) + len(only[1]), 1)
        for is_chosen, words in zip((1, 0), only, strict=True):
            for word in words:
                entry = found[word]
                entry[0] += 1
                entry[1] += is_chosen
                entry[2] += share
    return {word: (int(total), int(chosen), expected) for word, (total, chosen, expected) in found.items()}


def _tail(count: int, total: int, share: float) -> float:
    """P(X >= count) of a binomial."""
    from scipy.special import betainc

    return float(betainc(count, total - count + 1, share)) if count else 1.0


def _discoveries(p_values: Sequence[float]) -> Iterator[int]:
    """Indices that pass the step-up procedure: the k smallest, k the largest with p_(k) <= k / m * level."""
    order = np.argsort(np.asarray(p_values), kind="stable")
    within = [rank for rank, index in enumerate(order, start=1) if p_values[index] <= rank / len(order) * FALSE_DISCOVERIES]
    yield from (int(index) for index in order[: max(within, default=0)])


def _shortest(triggers: Sequence[Trigger]) -> list[Trigger]:
    """Without the word pairs that hold a word which is a trigger by itself."""
    alone = {trigger.words for trigger in triggers if " " not in trigger.words}
    return [trigger for trigger in triggers if " " not in trigger.words or not alone & set(trigger.words.split(" "))]
