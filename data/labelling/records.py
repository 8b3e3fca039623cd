"""What the labelling of people is made of: items, answers, and what has been given so far."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from data.judgements import BETTER, WORSE, Candidates
from data.records import Messages, canonical_json

LONGEST_COMMENT = 4000  # characters


@dataclass(frozen=True, slots=True)
class Settings:
    """How a labelling task is shared out.

    labels: wanted before the task counts as done; 0: one for every item, and the second and further ones of items that overlap.
    overlap_share: share of the items that ``overlap_annotators`` people label; the others get one label.
    gold_share: share of the items shown that have a known answer, as long as an annotator has not seen all of those.
    """

    labels: int = 0
    overlap_share: float = 0.0
    overlap_annotators: int = 2
    gold_share: float = 0.0
    guidelines: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Item:
    """Completions of one prompt to be ranked. ``gold_ranks`` is the known answer of an item that tests the annotator, else empty."""

    id: str
    prompt: Messages
    completions: tuple[str, ...]
    gold_ranks: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a person says of an item: ranks in the order of its completions (0 is best, ties share a rank) and, of two, the grade.

    ``grade``: how much better the first completion is, BETTER to WORSE; 0 for a tie and for rankings of more than two.
    """

    ranks: tuple[int, ...]
    grade: int = 0
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Given:
    """An annotator's answer to an item as it stands, or that it was skipped (no ranks).

    ``order``: the completions' indices in the order in which they were shown. ``seconds``: from showing the item to the answer.
    """

    item: str
    annotator: str
    ranks: tuple[int, ...]
    grade: int = 0
    comment: str = ""
    order: tuple[int, ...] = ()
    seconds: float = 0.0
    gold_ranks: tuple[int, ...] = field(default=())

    def to_row(self) -> dict[str, object]:
        """The answer as plain values."""
        return asdict(self)


def checked(answer: Answer, k: int) -> Answer:
    """The answer with dense ranks, if it is one to an item of ``k`` completions.

    Raises:
        ValueError: the number of ranks, a rank below 0, or a grade that does not fit the ranks.
    """
    if len(answer.ranks) != k or any(rank < 0 for rank in answer.ranks):
        raise ValueError(f"an item of {k} completions needs {k} ranks from 0, got {answer.ranks}")
    dense = sorted(set(answer.ranks))
    ranks = tuple(dense.index(rank) for rank in answer.ranks)
    if not WORSE <= answer.grade <= BETTER or (answer.grade and k != 2):
        raise ValueError(f"grade {answer.grade} is not one of {WORSE} to {BETTER}, or the item has {k} completions and not 2")
    if k == 2 and answer.grade and ranks != ((0, 1) if answer.grade > 0 else (1, 0)):
        raise ValueError(f"grade {answer.grade} contradicts the ranks {ranks}: a positive one says that the first is better")
    return Answer(ranks, answer.grade, answer.comment[:LONGEST_COMMENT])


def is_askable(candidates: Candidates) -> bool:
    """Whether there is something to choose: at least two completions that differ."""
    return len({text.strip() for text in candidates.completions}) > 1


def content_digest(candidates: Sequence[Candidates]) -> str:
    """Names a set of candidates by what is judged: ids, prompts and completions."""
    rows = [[row.id, [[m.role, m.content] for m in row.prompt], list(row.completions)] for row in candidates]
    return hashlib.sha256(canonical_json(rows).encode("utf-8", "surrogatepass")).hexdigest()
