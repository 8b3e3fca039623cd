"""From questions to judgements: both orders of every pair, what must not win, and ranks from the pairs that were won."""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from data.degenerate import degenerate
from data.judgements import BETTER, TIE, WORSE, Candidates, Judgement, dense_ranks
from data.records import Messages
from models.configs.ai_judge import AIJudgeConfig
from models.configs.constitution import Principle
from models.judging.questions import Question
from models.judging.verdicts import Answer
from models.seeds import derive_seed


class Asked(Protocol):
    """Whoever answers questions."""

    def __call__(self, questions: Sequence[Question], *, seed: int, tick: Callable[[], None]) -> list[Answer]:
        """The answer to every question, in their order."""
        ...

    @property
    def counts(self) -> dict[str, float]:
        """What this process did; those of several processes add up."""
        ...

    @property
    def costs(self) -> dict[str, float]:
        """What all attempts of the stage have paid so far."""
        ...


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to compare; ``name`` makes the drawing of its principle its own."""

    prompt: Messages
    first: str
    second: str
    name: str


@dataclass(frozen=True, slots=True)
class Duel:
    """What became of a pair.

    ``verdict``: from the first's side, BETTER to WORSE; None where there is none, and ``reason`` says why. ``shown`` and ``swapped``: the
    answers to the two questions, each from the side of the answer shown first; None where nothing was asked.
    """

    verdict: int | None
    reason: str = ""
    shown: Answer | None = None
    swapped: Answer | None = None
    principles: tuple[str, ...] = ()


class PairwiseJudge:
    """A judge by comparison: the protocol ``data.judgements.Judging`` over whoever answers questions."""

    def __init__(self, config: AIJudgeConfig, asked: Asked, name: str) -> None:
        self.config, self.asked, self.name = config, asked, name
        self.tally: Counter[str] = Counter()

    def __call__(self, candidates: Sequence[Candidates], *, seed: int, tick: Callable[[], None]) -> list[Judgement]:
        """One judgement a row: all its pairs are compared, ranks are by pairs won (Copeland), equal numbers tie."""
        places = [(row, i, j) for row, c in enumerate(candidates) for i, j in itertools.combinations(range(len(c.completions)), 2)]
        pairs = [Pair(c.prompt, c.completions[i], c.completions[j], f"{c.id}/{i}/{j}") for c, i, j in _with(candidates, places)]
        duels: list[dict[tuple[int, int], Duel]] = [{} for _ in candidates]
        for (row, i, j), duel in zip(places, self.compare(pairs, seed=seed, tick=tick), strict=True):
            duels[row][i, j] = duel
        judgements = [self._judgement(c, own) for c, own in zip(candidates, duels, strict=True)]
        self.tally["abstained"] += sum(judgement.abstained for judgement in judgements)
        return judgements

    @property
    def counts(self) -> dict[str, float]:
        """What this process did so far; chunks of work add up."""
        own = {
            "judge/pairs": self.tally["pairs"],
            "judge/degenerate_pairs": self.tally["degenerate"],
            "judge/disagreements": self.tally["disagreements"],
            "judge/unreadable": self.tally["unreadable"],
            "judge/abstained": self.tally["abstained"],
        }
        return own | self.asked.counts

    @property
    def costs(self) -> dict[str, float]:
        """Tokens and money that all attempts of the stage have paid so far."""
        return self.asked.costs

    # Pairs

    def compare(self, pairs: Sequence[Pair], *, seed: int, tick: Callable[[], None]) -> list[Duel]:
        """Compare every pair, each in both orders unless it is settled without asking."""
        settled = [settled_duel(pair) for pair in pairs]
        open_pairs = [(pair, self._principles(pair, seed)) for pair, duel in zip(pairs, settled, strict=True) if duel is None]
        questions = [
            Question(pair.prompt, *texts, principles)
            for pair, principles in open_pairs
            for texts in ((pair.first, pair.second), (pair.second, pair.first))
        ]
        answers = self.asked(questions, seed=seed, tick=tick) if questions else []
        told = iter(self._duel(*each) for each in zip(answers[::2], answers[1::2], (p for _, p in open_pairs), strict=True))
        duels = [duel if duel is not None else next(told) for duel in settled]
        self.tally["pairs"] += len(pairs)
        self.tally["degenerate"] += sum(duel is not None and duel.verdict != TIE for duel in settled)
        return duels

    def _principles(self, pair: Pair, seed: int) -> tuple[Principle, ...]:
        principles = self.config.principles
        if self.config.principle_choice == "all" or len(principles) < 2:
            return tuple(principles)
        return (principles[derive_seed(seed, "principle", pair.name) % len(principles)],)

    def _duel(self, shown: Answer, swapped: Answer, principles: tuple[Principle, ...]) -> Duel:
        names = tuple(principle.name for principle in principles)
        self.tally["unreadable"] += (shown.verdict is None) + (swapped.verdict is None)
        if shown.verdict is None or swapped.verdict is None:
            return Duel(None, shown.reason or swapped.reason, shown, swapped, names)
        self.tally["disagreements"] += _sign(shown.verdict) != -_sign(swapped.verdict)
        if self.config.both_orders == "mean":
            verdict = mean_verdict(shown, swapped, self.config.tie_margin, self.config.clear_share)
        else:
            verdict = agreed(shown.verdict, -swapped.verdict)
        return Duel(verdict if self.config.grades else 2 * _sign(verdict), "", shown, swapped, names)

    def _judgement(self, candidates: Candidates, duels: dict[tuple[int, int], Duel]) -> Judgement:
        count = len(candidates.completions)
        points = copeland(count, {places: duel.verdict for places, duel in duels.items()})
        reasons = Counter(duel.reason for duel in duels.values() if duel.reason)
        known = all(point is not None for point in points)
        scores = tuple(point for point in points if point is not None) if known else ()
        principles = sorted({name for duel in duels.values() for name in duel.principles})
        grade = duels[0, 1].verdict if count == 2 and known else 0
        return Judgement(
            candidates.id,
            candidates.source,
            self.name,
            candidates.prompt,
            candidates.completions,
            dense_ranks(scores),
            grade=(grade or 0) if self.config.grades else 0,
            scores=scores,
            reason="; ".join(f"{reason} ({number})" for reason, number in sorted(reasons.items())),
            comment=", ".join(principles),
        )


def settled_duel(pair: Pair) -> Duel | None:
    """A pair that needs no judge: equal texts tie, a degenerate answer loses against a sound one and ties with another degenerate one."""
    if pair.first.strip() == pair.second.strip():
        return Duel(TIE)
    first, second = degenerate(pair.first), degenerate(pair.second)
    if not first and not second:
        return None
    verdict = TIE if first and second else WORSE if first else BETTER
    return Duel(verdict, "degenerate: " + " and ".join(sorted({reason for reason in (first, second) if reason})))


def agreed(verdict: int, other: int) -> int:
    """The weaker of two verdicts that point the same way, else a tie.

    By hand: better and slightly better are slightly better; better and worse, or better and a tie, are a tie.
    """
    if _sign(verdict) != _sign(other):
        return TIE
    return _sign(verdict) * min(abs(verdict), abs(other))


def mean_verdict(shown: Answer, swapped: Answer, tie_margin: float, clear_share: float) -> int:
    """The verdict by the mean probability of winning over both orders, which cancels a liking for the first place.

    By hand: .8 when shown first and 1 - .7 = .3 when shown second make .55: slightly better, and a tie at a margin of .1.

    Source: Wang et al. 2023, "Large language models are not fair evaluators", balanced position calibration.
    """
    assert shown.share is not None and swapped.share is not None
    gap = (shown.share + 1 - swapped.share) / 2 - 0.5
    if abs(gap) <= tie_margin:
        return TIE
    return (BETTER if abs(gap) + 0.5 >= clear_share else BETTER // 2) * (1 if gap > 0 else -1)


def copeland(count: int, verdicts: dict[tuple[int, int], int | None]) -> list[float | None]:
    """Of each completion the share of its answered pairs that it won, a tie counting half; None for one without an answered pair.

    By hand, three completions: 0 beats 1, 0 ties with 2, 2 beats 1: .75, 0, .75.
    """
    won: list[list[float]] = [[] for _ in range(count)]
    for (i, j), verdict in verdicts.items():
        if verdict is not None:
            won[i].append(0.5 + 0.5 * _sign(verdict))
            won[j].append(0.5 - 0.5 * _sign(verdict))
    return [sum(row) / len(row) if row else None for row in won]


def _with(candidates: Sequence[Candidates], places: Sequence[tuple[int, int, int]]) -> list[tuple[Candidates, int, int]]:
    return [(candidates[row], i, j) for row, i, j in places]


def _sign(verdict: int) -> int:
    return (verdict > 0) - (verdict < 0)
