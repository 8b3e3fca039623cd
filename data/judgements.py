"""What is judged and what a judge says of it: the records between sampling, judges of every kind, and preference data.

A judge of any kind (a verifier, a reward model, a language model, a person, a set of given labels) turns candidates into judgements.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from data.records import Messages, Prompt, Record

# Between two answers, from the first one's side.
BETTER, SLIGHTLY_BETTER, TIE, SLIGHTLY_WORSE, WORSE = 2, 1, 0, -1, -2


@dataclass(frozen=True, slots=True)
class Candidates(Record):
    """Completions of one prompt that wait for a judge. ``writers`` says for each which policy wrote it, and how, such as ``sft@1.0``."""

    prompt: Messages
    completions: tuple[str, ...]
    writers: tuple[str, ...]
    answer: str | None = None
    verifier: str = "none"
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def asked(self) -> Prompt:
        """The prompt as its verifier knows it."""
        return Prompt(self.id, self.source, self.prompt, self.answer, self.verifier, self.metadata)


@dataclass(frozen=True, slots=True)
class Judgement(Record):
    """What one judge says of one prompt's completions; ``id`` is that of the candidates.

    ``ranks``: 0 is best, ties share a rank, ranks are dense; empty where the judge abstained, and ``reason`` says why.
    ``grade``: of two completions, how much better the first one is (BETTER to WORSE); 0 where tied or not graded.
    ``scores``: where the judge gives numbers, in its own unit, higher is better.
    ``order``: the completions' indices in the order in which the judge saw them.
    """

    judge: str
    prompt: Messages
    completions: tuple[str, ...]
    ranks: tuple[int, ...]
    grade: int = 0
    scores: tuple[float, ...] = ()
    order: tuple[int, ...] = ()
    reason: str = ""
    comment: str = ""

    @property
    def abstained(self) -> bool:
        """Whether the judge could not or would not say."""
        return not self.ranks


class Judging(Protocol):
    """A judge: one judgement a row of candidates, in their order. ``tick`` is called often; it raises when the stage is to stop."""

    def __call__(self, candidates: Sequence[Candidates], *, seed: int, tick: Callable[[], None]) -> list[Judgement]:
        """Judge every row."""
        ...


def dense_ranks(scores: Sequence[float]) -> tuple[int, ...]:
    """Ranks of scores: 0 is best, equal scores share a rank. By hand: (0, 1, 0.5, 1) give (2, 0, 1, 0)."""
    order = sorted(set(scores), reverse=True)
    return tuple(order.index(score) for score in scores)
