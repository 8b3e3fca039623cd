"""Stage entry: measure a judge against people, beside two judges that read nothing: the longer answer wins, and a coin."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.drawing import drawn
from data.intervals import Interval, wilson
from data.judge_sets import JudgedPair, load_judge_set
from data.labelling.agreement import kappa, over_items
from models.configs.judge_accuracy import JudgeAccuracyConfig
from models.judging.chunked import in_chunks
from models.judging.loading import load_ai_judge
from models.judging.pairwise import Duel, Pair, PairwiseJudge
from models.run import Run
from models.seeds import derive_seed

CLASSES = (1, 0, -1)
PLAIN = ("set", "judge", "pairs", "ties", "abstained")  # columns of the table
MEASURED = ("agreement", "accuracy", "kappa", "position_first", "consistent", "longer", "human_longer")


@dataclass(frozen=True, slots=True)
class Judged:
    """One pair: what people say and what the judge says of it: 1 the first is better, -1 the second, 0 a tie, None nothing.

    ``shown`` and ``swapped``: the judge's two single answers, from the side of the answer shown first; None where nothing was asked.
    ``longer``: which answer is longer, in characters.
    """

    label: int
    verdict: int | None
    longer: int
    shown: int | None = None
    swapped: int | None = None


def measure(config: JudgeAccuracyConfig, *, policy: Path | None, cache: Path, seed: int, run: Run) -> dict[str, Any]:
    """Write ``judge_accuracy.json``, a row a set and judge, and the same as a table in ``judge_accuracy.md``.

    Raises:
        ValueError: a set cannot be read, or the judge cannot be loaded.
    """
    judge = load_ai_judge(config.judge, folder=policy, cache=cache, device=run.device, payer=run.stage_key)
    rows: list[dict[str, Any]] = []
    shares: dict[str, float] = {}
    counts: Counter[str] = Counter()
    for number, source in enumerate(config.sets):
        pairs = drawn(load_judge_set(source.kind, Path(source.path)), source.rows, derive_seed(seed, "judge set", number))
        judged, told = ask(judge, pairs, f"set-{number}", config.chunk_pairs, seed, run)
        counts.update(told)
        people = {"set": source.kind, "human_agreement": human_agreement([pair.votes for pair in pairs])}
        own: dict[str, Any] = people | {"judge": judge.name} | measures(judged, config.resamples, seed)
        own["subsets"] = by_subset(pairs, judged)
        rows += [own, *(people | {"judge": name} | measures(other, config.resamples, seed) for name, other in blind(pairs, seed).items())]
        shares[f"judge_accuracy/{source.kind}"] = own["agreement"]["mean"]
    shown = [cells(row) for row in rows]
    table = markdown(shown)
    content = {"rows": rows, "cells": shown, "markdown": table}
    (run.out / "judge_accuracy.json").write_text(json.dumps(content, indent=1), encoding="utf-8")
    (run.out / "judge_accuracy.md").write_text(table, encoding="utf-8")
    run.report({**counts, **judge.costs, **shares}, 0)
    run.log(table)
    return {"rows": len(rows)}


def ask(judge: PairwiseJudge, pairs: Sequence[JudgedPair], name: str, size: int, seed: int, run: Run) -> tuple[list[Judged], Counter[str]]:
    """What the judge says of every pair."""

    def work(chunk: Sequence[JudgedPair]) -> list[Any]:
        asked = [Pair(p.candidates.prompt, p.candidates.completions[0], p.candidates.completions[1], p.candidates.id) for p in chunk]
        duels = judge.compare(asked, seed=seed, tick=run.stop_if_asked)
        return [asdict(_judged(pair, duel)) for pair, duel in zip(chunk, duels, strict=True)]

    rows, counts = in_chunks(run, name, judge, pairs, size, work)
    return [Judged(**row) for row in rows], counts


def _judged(pair: JudgedPair, duel: Duel) -> Judged:
    shown, swapped = (None if answer is None else _sign(answer.verdict) for answer in (duel.shown, duel.swapped))
    return Judged(pair.label, _sign(duel.verdict), longer_of(pair), shown, swapped)


def blind(pairs: Sequence[JudgedPair], seed: int) -> dict[str, list[Judged]]:
    """The judges that read nothing: the longer answer wins, and a coin."""
    coin = np.random.default_rng(derive_seed(seed, "coin")).choice([1, -1], len(pairs)).tolist()
    return {
        "longer": [Judged(pair.label, longer_of(pair), longer_of(pair)) for pair in pairs],
        "coin": [Judged(pair.label, side, longer_of(pair)) for pair, side in zip(pairs, coin, strict=True)],
    }


def longer_of(pair: JudgedPair) -> int:
    """1 where the first answer has more characters, -1 where the second has, else 0."""
    first, second = pair.candidates.completions
    return (len(first) > len(second)) - (len(first) < len(second))


# Measures


def measures(judged: Sequence[Judged], resamples: int, seed: int) -> dict[str, Any]:
    """All measures of one judge on one set, each with its 95 % interval, None where nothing can be measured.

    agreement: share of pairs on which judge and people say the same, ties included; nothing said is not the same. accuracy: of the pairs
    that both decide, the share decided alike. kappa: Cohen's, over first, tie, second, where the judge said anything. position_first:
    share of the single answers that prefer what is shown first, over both orders, so that 1/2 is without bias (its interval counts the two
    answers to a pair as one, which is wide rather than narrow). consistent: share of pairs on which the two orders agree. longer: share of
    the judge's decisions for the longer answer; human_longer: the same of people.
    """
    answered = [row for row in judged if row.verdict is not None]
    both = [row for row in judged if row.verdict and row.label]
    ordered = [row for row in judged if row.shown is not None and row.swapped is not None]
    decided = [[float(side > 0) for side in (row.shown, row.swapped) if side] for row in ordered]
    decided = [row for row in decided if row]
    return {
        "pairs": len(judged),
        "abstained": len(judged) - len(answered),
        "ties": sum(row.verdict == 0 for row in judged),
        "agreement": _share([row.verdict == row.label for row in judged]),
        "accuracy": _share([row.verdict == row.label for row in both]),
        "kappa": _kappa_interval([(row.label, row.verdict) for row in answered if row.verdict is not None], resamples, seed),
        "position_first": _mean_share([sum(row) / len(row) for row in decided]),
        "consistent": _share([row.shown == -(row.swapped or 0) for row in ordered]),
        "longer": _share([row.verdict == row.longer for row in judged if row.verdict and row.longer]),
        "human_longer": _share([row.label == row.longer for row in judged if row.label and row.longer]),
    }


def by_subset(pairs: Sequence[JudgedPair], judged: Sequence[Judged]) -> dict[str, dict[str, float] | None]:
    """Agreement within each subset of a set."""
    same: dict[str, list[bool]] = {}
    for pair, row in zip(pairs, judged, strict=True):
        same.setdefault(pair.subset, []).append(row.verdict == row.label)
    return {subset: _share(values) for subset, values in sorted(same.items())}


def _share(values: Sequence[bool]) -> dict[str, float] | None:
    return asdict(wilson(sum(values), len(values))) if values else None


def _mean_share(shares: Sequence[float]) -> dict[str, float] | None:
    """Mean of shares, with the interval of so many single observations: the bootstrap has no width where all are the same."""
    if not shares:
        return None
    interval = wilson(round(sum(shares)), len(shares))
    return asdict(Interval(sum(shares) / len(shares), interval.low, interval.high))


def tables_of(pairs: Sequence[tuple[int, int]]) -> list[np.ndarray]:
    """Each pair of what people say and what the judge says as a table of one: row people, column judge, both in the order of CLASSES."""
    size = len(CLASSES)
    cells = (CLASSES.index(one) * size + CLASSES.index(other) for one, other in pairs)
    return [np.eye(size * size)[cell].reshape(size, size) for cell in cells]


def _kappa_interval(pairs: Sequence[tuple[int, int]], resamples: int, seed: int) -> dict[str, float] | None:
    """Cohen's kappa with its bootstrap interval over pairs; None where it has no value."""
    found = over_items(tables_of(pairs), kappa, seed=seed, n=resamples)
    return None if found is None else asdict(found)


def human_agreement(votes: Sequence[tuple[int, ...]]) -> float | None:
    """Share of pairs of people who say the same of a pair of answers; None where only one person is known.

    By hand: votes (1, 1, -1) agree in one of three pairs of people.
    """
    same = [own[i] == own[j] for own in votes for i in range(len(own)) for j in range(i)]
    return sum(same) / len(same) if same else None


# The table


def cells(row: dict[str, Any]) -> dict[str, str]:
    """A row as it is shown."""
    return {name: str(row[name]) for name in PLAIN} | {name: _cell(row[name]) for name in MEASURED}


def markdown(shown: Sequence[dict[str, str]]) -> str:
    """Rows as a Markdown table."""
    header = [*PLAIN, *MEASURED]
    lines = [header, ["---"] * len(header), *([row[name] for name in header] for row in shown)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def _sign(verdict: int | None) -> int | None:
    return None if verdict is None else (verdict > 0) - (verdict < 0)
