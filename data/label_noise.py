"""How many labels of a preference set are wrong: from pairs that were labelled twice, and from how well labels can be predicted."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.intervals import Interval, wilson
from data.records import Preference, normalised_text

LEAST_PAIRS = 50
FOLDS = 5
FEATURES = 2**16


@dataclass(frozen=True, slots=True)
class Noise:
    """Flipped labels. ``twice``: as a share, from double labels, None where none agree. ``at_most``: an upper bound, None with few pairs.

    ``doubtful`` are numbers of pairs whose label a model of the other pairs contradicts, the surest first.
    """

    twice: Interval | None
    labelled_twice: int
    at_most: float | None
    doubtful: tuple[int, ...]


def estimate_noise(pairs: Sequence[Preference], seed: int) -> Noise:
    """Both estimates.

    Labels of the same pair that are wrong independently with probability e disagree with probability d = 2 e (1 - e), so that
    e = (1 - sqrt(1 - 2 d)) / 2, with Wilson's interval of d carried over. By hand: 32 of 100 disagree: e = (1 - 0.6) / 2 = 0.2. A set
    from which repeated rows were removed holds the disagreeing ones only, and says nothing: no estimate without one that agrees.

    Of a classifier trained on other prompts, let a be its error on true labels, at most 1/2. Labels flipped with probability e, whatever
    the pair, it contradicts with probability a + e - 2 a e >= e: the held-out error bounds e from above, loosely where the model is weak.

    Source: Angluin and Laird 1988 (random classification noise); Northcutt, Jiang and Chuang 2021 for the list of doubtful labels.
    """
    disagree, total = _double_labels(pairs)
    twice = wilson(disagree, total) if total > disagree else None
    flipped = None if twice is None else Interval(_flips(twice.mean), _flips(twice.low), _flips(twice.high))
    if len(pairs) < LEAST_PAIRS or len({normalised_text(pair.prompt) for pair in pairs}) < FOLDS:
        return Noise(flipped, total, None, ())
    evidence = _held_out_evidence(pairs, seed)
    wrong = int((evidence < 0).sum())
    order = np.argsort(evidence, kind="stable")
    return Noise(flipped, total, round(min(wilson(wrong, len(pairs)).high, 1.0), 4), tuple(int(i) for i in order[:wrong]))


def _double_labels(pairs: Sequence[Preference]) -> tuple[int, int]:
    """Of the pairs that were labelled at least twice, those whose first two labels disagree, and all."""
    labels: dict[Any, list[str]] = defaultdict(list)
    for pair in pairs:
        labels[normalised_text(pair.prompt), frozenset((pair.chosen, pair.rejected))].append(pair.chosen)
    twice = [chosen for chosen in labels.values() if len(chosen) > 1]
    return sum(first != second for first, second, *_ in twice), len(twice)


def _flips(disagreement: float) -> float:
    return (1 - math.sqrt(max(0.0, 1 - 2 * disagreement))) / 2


def _held_out_evidence(pairs: Sequence[Preference], seed: int) -> np.ndarray:
    """Log-odds that each pair's label is right, by a linear model of words and length that was trained on other prompts."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import LogisticRegression

    words = HashingVectorizer(n_features=FEATURES, ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]+")
    lengths = np.array([[math.log1p(len(pair.chosen)) - math.log1p(len(pair.rejected))] for pair in pairs])
    chosen, rejected = (csr_matrix(words.transform([getattr(pair, side) for pair in pairs])) for side in ("chosen", "rejected"))
    features = csr_matrix(hstack([chosen - rejected, csr_matrix(lengths)]))
    draws = random.Random(f"noise:{seed}")
    sides = np.array([draws.choice((-1, 1)) for _ in pairs])  # which answer is named first: a model without an intercept sees no side
    folds = _folds([normalised_text(pair.prompt) for pair in pairs], draws)
    evidence = np.zeros(len(pairs))
    for fold in range(FOLDS):
        rest, own = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        if len(set(sides[rest])) < 2 or not len(own):
            continue
        model = LogisticRegression(fit_intercept=False, max_iter=500)
        model.fit(features[rest].multiply(sides[rest][:, None]).tocsr(), sides[rest])
        evidence[own] = model.decision_function(features[own])
    return evidence


def _folds(prompts: Sequence[str], draws: random.Random) -> np.ndarray:
    """The fold of each pair, all of a prompt in the same one."""
    every = list(dict.fromkeys(prompts))
    draws.shuffle(every)
    fold = {prompt: number % FOLDS for number, prompt in enumerate(every)}
    return np.array([fold[prompt] for prompt in prompts])
