"""Stage entries: completions for people to judge; and preferences, from completions that judges have ranked."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.judgements import BETTER, Candidates, Judgement
from data.lint import lint_stage
from data.records import Label, Preference, Ranking, Record, Tie, normalised_text, record_id
from data.tables import read_table, write_table
from data.votes import Settled
from models.configs.preferences import CandidatesConfig, PreferencesConfig
from models.panel import Evidence, Verdicts, is_drawn, judge_rows
from models.panel_judges import labelled_sets
from models.run import Run
from models.writing import distinct, write_completions


def sample(config: CandidatesConfig, *, policies: Mapping[str, Path], data: Path, seed: int, run: Run) -> dict[str, Any]:
    """Write ``samples.parquet``, all that the policies wrote, and ``candidates.parquet``, what people are to be asked about.

    The latter holds every text of a prompt once, and prompts with two texts at least.

    Raises:
        ValueError: no prompt has two different completions.
    """
    samples = write_completions(config, policies, data, seed, run)
    drawn = [row for row in samples if is_drawn(row.id, config.asked_share, seed)]
    asked = [distinct(row)[0] for row in drawn] + (labelled_sets(data, seed)[0] if config.labelled_sets else [])
    asked = [row for row in asked if len(row.completions) > 1]
    if not asked:
        raise ValueError(f"no prompt of {len(samples)} has two different completions: sample more, or at a higher temperature")
    write_table(run.out / "samples.parquet", samples, Candidates)
    write_table(run.out / "candidates.parquet", asked, Candidates)
    summary = {"preferences/prompts": len(samples), "preferences/candidates": len(asked)}
    run.report(summary, 0)
    return {name.removeprefix("preferences/"): value for name, value in summary.items()}


def collect(
    config: PreferencesConfig,
    *,
    policies: Mapping[str, Path],
    data: Path,
    reward: Path | None = None,
    candidates: Path | None = None,
    labels: Path | None = None,
    judge_model: Path | None = None,
    answers: Path = Path("answers.sqlite"),
    seed: int,
    run: Run,
) -> dict[str, Any]:
    """Write ``rankings.parquet``, ``preferences.parquet``, ``labels.parquet``, ``judgements.parquet``, where there are any
    ``test_preferences.parquet``, where they are kept ``ties.parquet``, and ``lint.json``.

    ``candidates`` is what ``sample`` wrote under the same seed, where people were asked about it; otherwise the policies write now. The
    prompts of held-out pairs give no labels and no ties.

    Raises:
        ValueError: the judges prefer nothing, or the pairs have faults and lint says stop.
    """
    samples = read_table(candidates / "samples.parquet", Candidates) if candidates else write_completions(config, policies, data, seed, run)
    given, known = labelled_sets(data, seed) if config.has("dataset") else ([], [])
    rows = [*samples, *given]
    single = [distinct(row) for row in rows]
    places = [own for _, own in single]
    verdicts = judge_rows(config, [row for row, _ in single], Evidence(reward, labels, known, judge_model, answers), seed, run)
    outcomes = [outcome_of(row, at, own, config) for row, at, own in zip(rows, places, verdicts.settled, strict=True)]
    train, test = split_outcomes(outcomes, len(samples), config.test_share)
    if not any(outcome.pairs for outcome in train):
        raise ValueError(f"the judge found no completion better than another in {len(rows)} prompts: sample more, or choose easier prompts")
    _write(config, outcomes, train, test, verdicts.judgements, run)
    findings = lint_stage(run.out, [data], config.lint, seed, run.log)
    summary = _summary(outcomes, train, test, verdicts, places) | dict(verdicts.metrics) | {"preferences/lint_findings": findings}
    run.report(summary, 0)
    return {name.removeprefix("preferences/"): value for name, value in summary.items()}


@dataclass(frozen=True)
class Outcome:
    """What one prompt gives: its ranking (None where every judge abstained), and what follows from it."""

    key: str
    ranking: Ranking | None
    pairs: list[Preference]
    ties: list[Tie]
    labels: list[Label]


def outcome_of(row: Candidates, places: Sequence[int], settled: Settled, config: PreferencesConfig) -> Outcome:
    """Ranking, pairs, ties and labels of one prompt; ``places`` says where each of its completions stands among the settled texts."""
    key = normalised_text(row.prompt)
    if not settled.ranks:
        return Outcome(key, None, [], [], [])
    ranking = rank(row, places, settled, config)
    pairs = pairs_of(ranking, config.pairs_per_prompt, config.min_gap)
    ties = ties_of(ranking, config.pairs_per_prompt, config.min_gap) if config.ties == "keep" else []
    scores = settled.wins if settled.grade or not settled.scores else settled.scores
    failed = [settled.failed[place] for place in places]
    labels = labels_of(ranking, [scores[place] for place in places], failed, config.label_threshold) if scores else []
    return Outcome(key, ranking, pairs, ties, labels)


def rank(row: Candidates, places: Sequence[int], settled: Settled, config: PreferencesConfig) -> Ranking:
    """All completions with their ranks. The scores of a graded pair are its margin and 0, so that their difference is the margin.

    By hand, graded slightly worse with margin 1/3: ranks (1, 0), scores (0, 1/3).
    """
    scores = settled.scores
    if settled.grade:
        margin = config.margin_better if abs(settled.grade) == BETTER else config.margin_slightly_better
        scores = (margin, 0.0) if settled.grade > 0 else (0.0, margin)
    return Ranking(
        record_id(row.prompt, row.completions),
        row.source,
        row.prompt,
        row.completions,
        tuple(settled.ranks[place] for place in places),
        tuple(scores[place] for place in places) if scores else (),
    )


def pairs_of(ranking: Ranking, most: int, min_gap: float) -> list[Preference]:
    """The widest-gap pairs of a ranking, by ranks where it has no scores, no text twice on the same side; none that is tied."""
    scores = ranking.scores or [-float(rank) for rank in ranking.ranks]
    candidates = [
        (scores[i] - scores[j], ranking.completions[i], ranking.completions[j])
        for i, j in itertools.permutations(range(len(scores)), 2)
        if ranking.ranks[i] < ranking.ranks[j] and not _is_tie(ranking, i, j, min_gap) and _differ(ranking, i, j)
    ]
    pairs: list[Preference] = []
    for gap, chosen, rejected in sorted(candidates, key=lambda c: -c[0]):
        if len(pairs) < most and all(chosen != p.chosen and rejected != p.rejected for p in pairs):
            margin = gap if ranking.scores else 0.0
            pairs.append(Preference(record_id(ranking.prompt, chosen, rejected), ranking.source, ranking.prompt, chosen, rejected, margin))
    return pairs


def ties_of(ranking: Ranking, most: int, min_gap: float) -> list[Tie]:
    """Pairs of different texts of which neither is better, no text twice."""
    ties: list[Tie] = []
    for i, j in itertools.combinations(range(len(ranking.ranks)), 2):
        texts = (ranking.completions[i], ranking.completions[j])
        used = {text for tie in ties for text in (tie.first, tie.second)}
        if len(ties) < most and _is_tie(ranking, i, j, min_gap) and _differ(ranking, i, j) and not used & set(texts):
            ties.append(Tie(record_id("tie", ranking.prompt, *texts), ranking.source, ranking.prompt, *texts))
    return ties


def _is_tie(ranking: Ranking, i: int, j: int, min_gap: float) -> bool:
    near = bool(min_gap and ranking.scores) and abs(ranking.scores[i] - ranking.scores[j]) <= min_gap
    return near or ranking.ranks[i] == ranking.ranks[j]


def _differ(ranking: Ranking, i: int, j: int) -> bool:
    return ranking.completions[i].strip() != ranking.completions[j].strip()


def labels_of(ranking: Ranking, scores: Sequence[float], failed: Sequence[bool], threshold: float) -> list[Label]:
    """Each text of a ranking once, desirable if its score is at least ``threshold``; what could not be judged has no label.

    By hand, threshold 0.5: scores (0, 1, 0.5) of x, y, x are undesirable, desirable; the second x is left out.
    """
    labels: dict[str, Label] = {}
    for text, score, is_failed in zip(ranking.completions, scores, failed, strict=True):
        if not is_failed and text not in labels:
            desirable = score >= threshold
            labels[text] = Label(record_id("label", ranking.prompt, text, desirable), ranking.source, ranking.prompt, text, desirable)
    return list(labels.values())


def split_outcomes(outcomes: Sequence[Outcome], sampled: int, test_share: float) -> tuple[list[Outcome], list[Outcome]]:
    """Those to train on, and the last share, held out: of what was sampled, and of what was given. No prompt is on both sides."""
    parts = [outcomes[:sampled], outcomes[sampled:]]
    test = [outcome for part in parts for outcome in part[len(part) - round(len(part) * test_share) :]]
    rest = [outcome for part in parts for outcome in part[: len(part) - round(len(part) * test_share)]]
    held = {outcome.key for outcome in test}
    return [outcome for outcome in rest if outcome.key not in held], test


def _write(
    config: PreferencesConfig,
    outcomes: Sequence[Outcome],
    train: Sequence[Outcome],
    test: Sequence[Outcome],
    judgements: Sequence[Judgement],
    run: Run,
) -> None:
    held_out = [pair for outcome in test for pair in outcome.pairs]
    tables: dict[str, tuple[Sequence[Record], type[Record]]] = {
        "rankings": ([outcome.ranking for outcome in outcomes if outcome.ranking], Ranking),
        "preferences": ([pair for outcome in train for pair in outcome.pairs], Preference),
        "labels": ([label for outcome in train for label in outcome.labels], Label),
        "judgements": (judgements, Judgement),
    }
    if config.ties == "keep":
        tables["ties"] = ([tie for outcome in train for tie in outcome.ties], Tie)
    if held_out:
        tables["test_preferences"] = (held_out, Preference)
    for name, (records, kind) in tables.items():
        write_table(run.out / f"{name}.parquet", records, kind)


def _summary(
    outcomes: Sequence[Outcome], train: Sequence[Outcome], test: Sequence[Outcome], verdicts: Verdicts, places: Sequence[Sequence[int]]
) -> dict[str, float]:
    labels = [label for outcome in train for label in outcome.labels]
    scores = [score for outcome in outcomes if outcome.ranking for score in outcome.ranking.scores]
    summary = {
        "preferences/prompts": len(outcomes),
        "preferences/pairs": sum(len(outcome.pairs) for outcome in train),
        "preferences/test_pairs": sum(len(outcome.pairs) for outcome in test),
        "preferences/ties": sum(len(outcome.ties) for outcome in train),
        "preferences/labels": len(labels),
        "preferences/desirable_labels": sum(label.desirable for label in labels),
        "preferences/tied_prompts": sum(outcome.ranking is not None and not outcome.pairs for outcome in outcomes),
        "preferences/unjudged_prompts": sum(outcome.ranking is None for outcome in outcomes),
        "preferences/abstentions": sum(judgement.abstained for judgement in verdicts.judgements),
        "preferences/judge_failures": verdicts.failures(places),
    }
    return summary | ({"preferences/score": sum(scores) / len(scores)} if scores else {})
