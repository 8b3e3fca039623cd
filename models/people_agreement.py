"""How far a reward model agrees with people, beside how far people agree with each other.

A model is compared with one person at a time, as people are with each other: a majority has less noise than a person, and agreement with it
would flatter the model. A model hardly ever ties, and people do: both are also compared where both decide.

Axes: ``C`` the second is better, neither, the first is better (rows and columns of a table).
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np

from data.intervals import wilson
from data.judge_sets import majority
from data.labelling.agreement import SIGNS, Table, kappa, observed, over_items
from data.measures import Measure
from data.people_pairs import PeoplePair


def agreement_measures(pairs: Sequence[PeoplePair], verdicts: Sequence[int], name: str, *, seed: int, resamples: int) -> list[Measure]:
    """Agreement of a model with people, and of people, on one set: raw, Cohen's kappa, and raw where both decide.

    ``verdicts``: of each pair 1, 0 or -1 as the model prefers the first, neither, the second. Of people there is nothing where no pair has
    two votes. people_accuracy: the model against the majority, where that decides.

    By hand: votes (1, 1, -1), verdict 1: the model agrees with 2/3 of the people, who agree in 1/3 of their pairs.
    """
    items = _by_item(pairs, verdicts)
    found = []
    for who, tables in (("reward", [own for own, _ in items]), ("human", [human for _, human in items])):
        decided = [table[np.ix_([0, 2], [0, 2])] for table in tables]
        for what, given, statistic in (("agreement", tables, observed), ("kappa", tables, kappa), ("decided_agreement", decided, observed)):
            found += _over_items(f"{who}_{what}/people={name}", given, statistic, seed, resamples)
    return found + _accuracy(pairs, verdicts, f"people_accuracy/people={name}")


def _by_item(pairs: Sequence[PeoplePair], verdicts: Sequence[int]) -> list[tuple[Table, Table]]:
    """Of each item the table of people (rows) against the model (columns), and that of people against people, both ways round."""
    found: dict[str, tuple[Table, Table]] = {}
    for pair, verdict in zip(pairs, verdicts, strict=True):
        own, human = found.setdefault(pair.item, (np.zeros((SIGNS, SIGNS)), np.zeros((SIGNS, SIGNS))))
        for vote in pair.votes:
            own[1 + vote, 1 + verdict] += 1
        for one, other in itertools.permutations(pair.votes, 2):
            human[1 + one, 1 + other] += 1
    return list(found.values())


def _over_items(name: str, tables: Sequence[Table], statistic: Callable[[Table], float], seed: int, resamples: int) -> list[Measure]:
    interval = over_items(tables, statistic, seed=seed, n=resamples)
    if interval is None or not math.isfinite(interval.low):
        return []
    better = "higher" if name.startswith("reward") else "neither"
    return [Measure(name, interval.mean, interval.low, interval.high, better)]


def _accuracy(pairs: Sequence[PeoplePair], verdicts: Sequence[int], name: str) -> list[Measure]:
    labelled = [(pair.pair.id, majority(pair.votes), verdict) for pair, verdict in zip(pairs, verdicts, strict=True)]
    values = {f"{n}/{id}": float(label == verdict) for n, (id, label, verdict) in enumerate(labelled) if label}
    if not values:
        return []
    share = wilson(int(sum(values.values())), len(values))
    return [Measure(name, share.mean, share.low, share.high, "higher", values)]
