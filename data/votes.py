"""How what several judges say of the same completions becomes one ranking."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from data.judgements import BETTER, SLIGHTLY_BETTER, TIE, Candidates, Judgement, dense_ranks

_DIGITS = 9  # sums of weights are compared as decimals: 0.1 + 0.2 must tie with 0.3


@dataclass(frozen=True, slots=True)
class Settled:
    """What all judges together say of one prompt's completions.

    ``ranks``: 0 is best, ties share a rank; empty where every judge abstained.
    ``scores``: one judge's own, shares of won comparisons after a vote, empty where only ranks are known.
    ``wins``: the share of its comparisons that each completion won, ties counted half; empty where there is one completion only.
    ``grade``: of two completions, how much better the first one is, where a judge graded.
    ``failed``: completions that no judge could score.
    """

    ranks: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()
    wins: tuple[float, ...] = ()
    grade: int = TIE
    failed: tuple[bool, ...] = ()


def scored(row: Candidates, judge: str, scores: Sequence[float], reason: str = "") -> Judgement:
    """The judgement of a judge that gives numbers. NaN stands for a completion it could not score, which ranks with 0 or lowest of all."""
    ranks = dense_ranks(_finite(scores))
    return Judgement(row.id, row.source, judge, row.prompt, row.completions, ranks, scores=tuple(map(float, scores)), reason=reason)


def abstained(row: Candidates, judge: str, reason: str) -> Judgement:
    """The judgement of a judge that does not say."""
    return Judgement(row.id, row.source, judge, row.prompt, row.completions, (), reason=reason)


def says(judgement: Judgement, i: int, j: int) -> float | None:
    """How much better completion i is than j, in [-1, 1]: a grade of two as 1/2 and 1, a rank as 1; None where the judge does not say.

    By hand: ranks (0, 1, 1): 1 for (0, 2), 0 for (1, 2). Slightly worse of two: -0.5 for (0, 1).
    """
    if judgement.abstained or any(judgement.scores and math.isnan(judgement.scores[k]) for k in (i, j)):
        return None
    if judgement.grade and len(judgement.ranks) == 2:
        return judgement.grade / BETTER * (1 if i == 0 else -1)
    return float((judgement.ranks[j] > judgement.ranks[i]) - (judgement.ranks[j] < judgement.ranks[i]))


def settle(judgements: Sequence[Judgement], weights: Sequence[float]) -> Settled:
    """One judge's word as it is; of several, a weighted vote over all pairs of completions, the ranks by share of comparisons won.

    net_ij = sum_k w_k says_k(i, j) / sum_k w_k over the judges that say, 0 where none does;  wins_i = mean over j of (1 + net_ij) / 2

    By hand, three judges of equal weight on (a, b, c) with ranks (0, 1, 2), (1, 0, 2), (0, 0, 1): net_ab = 0, net_ac = net_bc = 1, so that
    wins are (3/4, 3/4, 0) and ranks (0, 0, 1). With weight 2 for the first judge net_ab = 1/4, wins (13/16, 11/16, 0), ranks (0, 1, 2).

    It is the weighted Borda count of partial rankings, ties counted half.
    """
    heard = [(judgement, weight) for judgement, weight in zip(judgements, weights, strict=True) if not judgement.abstained]
    if not heard:
        return Settled()
    size = len(heard[0][0].ranks)
    nets = {(i, j): _net(heard, i, j) for i, j in itertools.permutations(range(size), 2)}
    shares = [sum((1 + nets[i, j]) / 2 for j in range(size) if j != i) / (size - 1) for i in range(size)] if size > 1 else []
    wins = tuple(round(share, _DIGITS) for share in shares)
    failed = tuple(all(bool(own.scores) and math.isnan(own.scores[i]) for own, _ in heard) for i in range(size))
    if len(judgements) == 1:
        only = judgements[0]
        return Settled(only.ranks, _finite(only.scores), wins, only.grade, failed)
    grade = _grade(nets[0, 1]) if size == 2 and any(own.grade for own, _ in heard) else TIE
    return Settled(dense_ranks(wins) or (0,), wins, wins, grade, failed)


def _net(heard: Sequence[tuple[Judgement, float]], i: int, j: int) -> float:
    said = [(value, weight) for judgement, weight in heard if (value := says(judgement, i, j)) is not None]
    total = sum(weight for _, weight in said)
    return round(sum(value * weight for value, weight in said) / total, _DIGITS) if total else 0.0


def _grade(net: float) -> int:
    """The mean grade 2 net of the judges, rounded to a grade; just between slightly better and better counts as slightly."""
    if not net:
        return TIE
    return (BETTER if abs(net) > 0.75 else SLIGHTLY_BETTER) * (1 if net > 0 else -1)


def _finite(scores: Sequence[float]) -> tuple[float, ...]:
    lowest = min([0.0, *(score for score in scores if not math.isnan(score))])
    return tuple(lowest if math.isnan(score) else float(score) for score in scores)
