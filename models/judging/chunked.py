"""Judging that survives a kill: finished chunks are read back, and what they counted is counted once."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from data.judgements import Candidates, Judgement, Judging
from models.chunks import map_chunks
from models.judging.endpoint import Endpoint
from models.judging.pairwise import PairwiseJudge
from models.run import Run

T = TypeVar("T")


def in_chunks(
    run: Run, name: str, judge: Judging, items: Sequence[T], size: int, work: Callable[[Sequence[T]], list[Any]]
) -> tuple[list[Any], Counter[str]]:
    """``work`` of every chunk, which asks the judge and returns JSON rows, joined in order; and what the judge, if it is a language model,
    has counted over all attempts.
    """

    def counted(number: int, chunk: Sequence[T]) -> list[Any]:
        before = _counts(judge)
        rows = work(chunk)
        return [{"rows": rows, "counts": {key: value - before[key] for key, value in _counts(judge).items()}}]

    # An endpoint has a budget and a pace, which one process keeps.
    asks_endpoint = isinstance(judge, PairwiseJudge) and isinstance(judge.asked, Endpoint)
    parts = map_chunks(run, name, items, size, counted, shared=not asks_endpoint)
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part["counts"])
    return [row for part in parts for row in part["rows"]], total


def judge_candidates(
    run: Run, name: str, judge: Judging, candidates: Sequence[Candidates], size: int, seed: int
) -> tuple[list[Judgement], dict[str, float]]:
    """Judgements of all candidates, and the judge's metrics."""

    def work(chunk: Sequence[Candidates]) -> list[Any]:
        return [judgement.to_row() for judgement in judge(chunk, seed=seed, tick=run.stop_if_asked)]

    rows, counts = in_chunks(run, name, judge, candidates, size, work)
    costs = judge.costs if isinstance(judge, PairwiseJudge) else {}
    return [Judgement.from_row(row) for row in rows], {**counts, **costs}


def _counts(judge: Judging) -> Counter[str]:
    return Counter(judge.counts) if isinstance(judge, PairwiseJudge) else Counter()
