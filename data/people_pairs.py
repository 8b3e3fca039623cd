"""Pairs of answers with what each person said of them: what a reward model, and people themselves, are compared with."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from data.judge_sets import JudgedPair
from data.judgements import Judgement
from data.labelling.judgements import PERSON
from data.records import Preference
from data.votes import says


@dataclass(frozen=True, slots=True)
class PeoplePair:
    """A pair, its first answer in place of chosen, and of each person 1 (the first is better), -1 (the second) or 0.

    ``item``: what was judged at once; comparisons of one item hang together.
    """

    pair: Preference
    votes: tuple[int, ...]
    item: str


def of_set(pairs: Iterable[JudgedPair]) -> list[PeoplePair]:
    """The pairs of a published set."""
    found = []
    for one in pairs:
        row = one.candidates
        first, second = row.completions
        found.append(PeoplePair(Preference(row.id, row.source, row.prompt, first, second), one.votes, row.id))
    return found


def of_labels(judgements: Iterable[Judgement]) -> list[PeoplePair]:
    """Every comparison of two different completions by people who labelled; other judges and abstentions are left out."""
    votes: dict[tuple[str, int, int], list[int]] = {}
    rows: dict[str, Judgement] = {}
    for row in judgements:
        if row.abstained or not row.judge.startswith(PERSON):
            continue
        rows.setdefault(row.id, row)
        for i, j in itertools.combinations(range(len(row.completions)), 2):
            said = says(row, i, j)
            if said is not None and row.completions[i].strip() != row.completions[j].strip():
                votes.setdefault((row.id, i, j), []).append((said > 0) - (said < 0))
    return [
        PeoplePair(
            Preference(f"{name}/{i}-{j}", rows[name].source, rows[name].prompt, rows[name].completions[i], rows[name].completions[j]),
            tuple(given),
            name,
        )
        for (name, i, j), given in votes.items()
    ]
