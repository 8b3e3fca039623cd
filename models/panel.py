"""A panel of judges: who is asked about which candidates, and what comes of their answers."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.judgements import Candidates, Judgement, Judging
from data.tables import read_table
from data.verifiers import verify
from data.votes import Settled, settle
from models.callables import load_callable
from models.configs.preferences import JudgeConfig, PreferencesConfig
from models.judges import judge_of
from models.judging.chunked import judge_candidates
from models.judging.loading import load_ai_judge
from models.panel_judges import RecordedJudging, TextJudging, load_reward_judging
from models.run import Run
from models.seeds import derive_seed


@dataclass(frozen=True)
class Evidence:
    """What judges need beside the candidates: a reward model, a language model, people's labels, the labels of a data set."""

    reward: Path | None = None
    labels: Path | None = None
    dataset: Sequence[Judgement] = ()
    language_model: Path | None = None
    answers: Path = Path("answers.sqlite")  # those of endpoints, that were paid for


@dataclass
class Verdicts:
    """What a panel says: of each row what was settled, every judgement that it was settled from, and of which row that is."""

    settled: list[Settled]
    judgements: list[Judgement]
    rows: list[int]
    metrics: Counter[str]

    def failures(self, places: Sequence[Sequence[int]]) -> int:
        """Completions that a judge could not score; ``places``: of each row, where each of its completions stands among the distinct."""
        scores = [(own.scores, places[index]) for own, index in zip(self.judgements, self.rows, strict=True) if own.scores]
        return sum(math.isnan(own[place]) for own, row in scores for place in row)


def judge_rows(config: PreferencesConfig, rows: Sequence[Candidates], evidence: Evidence, seed: int, run: Run) -> Verdicts:
    """Ask every judge about the rows that are its, one judge after the other, and settle each row.

    Raises:
        ValueError: a judge cannot be loaded, or it knows none of its rows.
    """
    taken = _shares(config, rows, evidence, seed)
    said: list[dict[int, Judgement]] = []
    metrics: Counter[str] = Counter()
    for number, judge in enumerate(config.judges):
        own = [index for index, takers in enumerate(taken) if number in takers]
        if not own:
            said.append({})
            continue
        judgements, counts = _ask(number, judge, [rows[index] for index in own], evidence, seed, config.chunk_prompts, run)
        metrics.update(counts)
        said.append(dict(zip(own, judgements, strict=True)))
    settled = [
        settle([said[number][index] for number in takers], [config.judges[number].weight for number in takers])
        for index, takers in enumerate(taken)
    ]
    order = [(by_row[index], index) for by_row in said for index in by_row]
    return Verdicts(settled, [judgement for judgement, _ in order], [index for _, index in order], metrics)


def is_drawn(row_id: str, share: float, seed: int) -> bool:
    """Whether a prompt falls to whoever judges the first ``share`` of them: the same for every stage with the same seed."""
    return _draw(row_id, seed) < share


def _draw(row_id: str, seed: int) -> float:
    return derive_seed(seed, "share", row_id) / 2**63


def _shares(config: PreferencesConfig, rows: Sequence[Candidates], evidence: Evidence, seed: int) -> list[list[int]]:
    """The judges of each row. Shared out, a labelled row is its data set's, and people come first: what they are asked is known before."""
    if config.combine == "vote":
        return [list(range(len(config.judges)))] * len(rows)
    labelled = {judgement.id for judgement in evidence.dataset}
    kinds = [judge.kind for judge in config.judges]
    order = sorted((n for n, kind in enumerate(kinds) if kind != "dataset"), key=lambda n: kinds[n] != "people")
    total = sum(config.judges[n].weight for n in order)
    ends = [sum(config.judges[n].weight for n in order[: i + 1]) / total for i in range(len(order))]

    def taker(row: Candidates) -> int:
        if row.id in labelled:
            return kinds.index("dataset")
        draw = _draw(row.id, seed)
        return next((n for n, end in zip(order, ends, strict=True) if draw < end), order[-1])

    return [[taker(row)] for row in rows]


def _ask(
    number: int, judge: JudgeConfig, rows: Sequence[Candidates], evidence: Evidence, seed: int, size: int, run: Run
) -> tuple[list[Judgement], Mapping[str, float]]:
    if judge.kind == "verifier" and all(row.verifier == "none" for row in rows):
        verify(rows[0].asked, "")  # raises: says which verifiers there are
    judging = load_judging(judge, evidence, run)
    own_seed = derive_seed(seed, "judge", judge.called)
    judgements, counts = judge_candidates(run, f"judged-{number}", judging, rows, size, own_seed)
    reasons = Counter(judgement.reason for judgement in judgements if judgement.abstained)
    if reasons:
        run.log(f"{judge.called} abstained from {reasons.total()} of {len(rows)} prompts: {json.dumps(dict(reasons.most_common(5)))}")
    return judgements, counts


def load_judging(config: JudgeConfig, evidence: Evidence, run: Run) -> Judging:
    """The judge that a configuration names.

    Raises:
        ValueError: what it needs is not there.
    """
    if config.kind == "callable":
        return TextJudging(config.called, judge_of(load_callable(config.callable, f"callable of judge {config.called!r}")))
    if config.kind == "reward_model":
        if evidence.reward is None:
            raise ValueError(f"judge {config.called!r} is a reward model, and the stage was given none: give it one, or ask another judge")
        return load_reward_judging(config.called, evidence.reward, config.micro_batch_tokens, run.device)
    if config.kind == "language_model":
        folder, device = evidence.language_model, run.device
        return load_ai_judge(config.ai, folder=folder, cache=evidence.answers, device=device, name=config.called, payer=run.stage_key)
    if config.kind == "people":
        if evidence.labels is None:
            raise ValueError(f"judge {config.called!r} is people, and the stage was given no labels: let people label its candidates first")
        return RecordedJudging(config.called, read_table(evidence.labels / "judgements.parquet", Judgement), "nobody labelled it")
    if config.kind == "dataset":
        return RecordedJudging(config.called, evidence.dataset, "the data set does not know it")
    return TextJudging(config.called)
