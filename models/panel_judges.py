"""Judges of every kind behind one call: a row of candidates becomes one judgement."""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from data.judgements import Candidates, Judgement, dense_ranks
from data.packing import Group
from data.records import Preference, Ranking, record_id
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from data.verifiers import verify
from data.votes import abstained, scored, settle
from models.ensembles import Ensemble, load_reward
from models.heads import HeadModel
from models.judges import Judge
from models.rendering import completion_ids
from models.rewards import score_groups
from models.seeds import derive_seed

Tick = Callable[[], None]
_ROWS_AT_ONCE = 16


@dataclass
class TextJudging:
    """A score of each text on its own. It abstains from prompts without a verifier where it is the verifier."""

    name: str
    judge: Judge = verify

    def __call__(self, candidates: Sequence[Candidates], *, seed: int, tick: Tick) -> list[Judgement]:
        return [self._judged(row, tick) for row in candidates]

    def _judged(self, row: Candidates, tick: Tick) -> Judgement:
        tick()
        if self.judge is verify and row.verifier == "none":
            return abstained(row, self.name, "the prompt has no verifier")
        verdicts = [self.judge(row.asked, text) for text in row.completions]
        errors = [verdict.error for verdict in verdicts if verdict.error is not None]
        return scored(row, self.name, [v.score if v.error is None else math.nan for v in verdicts], "; ".join(dict.fromkeys(errors)))


@dataclass
class RewardJudging:
    """The reward of each completion by a trained reward model, or an ensemble, in its normalised unit."""

    name: str
    model: HeadModel | Ensemble
    tokenizer: PreTrainedTokenizerBase
    max_tokens: int

    def __call__(self, candidates: Sequence[Candidates], *, seed: int, tick: Tick) -> list[Judgement]:
        judgements: list[Judgement] = []
        for start in range(0, len(candidates), _ROWS_AT_ONCE):
            tick()
            judgements += self._judged(candidates[start : start + _ROWS_AT_ONCE])
        return judgements

    def _judged(self, rows: Sequence[Candidates]) -> list[Judgement]:
        groups = [
            Group(render_prompt(self.tokenizer, row.prompt), [completion_ids(self.tokenizer, row.prompt, t) for t in row.completions])
            for row in rows
        ]
        scores = score_groups(self.model, groups, self.max_tokens)
        finite = [[score if math.isfinite(score) else math.nan for score in own] for own in scores]
        reasons = ["a reward is not a finite number" if any(map(math.isnan, own)) else "" for own in finite]
        return [scored(row, self.name, own, reason) for row, own, reason in zip(rows, finite, reasons, strict=True)]


@dataclass
class RecordedJudging:
    """Judgements that were made before, found by the id of what was judged: people's, or the labels of a data set.

    Several of one row are a vote of one each.
    """

    name: str
    judgements: Sequence[Judgement]
    missing: str
    by_id: dict[str, list[Judgement]] = field(init=False)

    def __post_init__(self) -> None:
        self.by_id = defaultdict(list)
        for judgement in self.judgements:
            self.by_id[judgement.id].append(judgement)

    def __call__(self, candidates: Sequence[Candidates], *, seed: int, tick: Tick) -> list[Judgement]:
        return [self._judged(row) for row in candidates]

    def _judged(self, row: Candidates) -> Judgement:
        found = self.by_id.get(row.id, [])
        if not found:
            return abstained(row, self.name, self.missing)
        for judgement in found:
            if judgement.completions != row.completions:
                raise ValueError(
                    f"{judgement.judge} judged other completions under the id {row.id} than were sampled: the labels belong to another "
                    "candidates artifact; give those of this one"
                )
        settled = settle(found, [1.0] * len(found))
        if not settled.ranks:
            return abstained(row, self.name, "; ".join(dict.fromkeys(judgement.reason for judgement in found)))
        if len(found) == 1:
            return replace(found[0], judge=self.name)
        return Judgement(row.id, row.source, self.name, row.prompt, row.completions, settled.ranks, settled.grade)


def load_reward_judging(name: str, folder: Path, max_tokens: int, device: torch.device) -> RewardJudging:
    """A frozen reward model as judge."""
    return RewardJudging(name, load_reward(folder, device), load_tokenizer(folder), max_tokens)


def labelled_sets(data: Path, seed: int) -> tuple[list[Candidates], list[Judgement]]:
    """The pairs and rankings of curated data as candidates, and what they say of them.

    The two sides of a pair come in an order drawn by seed: whoever judges them again cannot tell from it.

    Raises:
        ValueError: the data holds neither.
    """
    rows: list[Candidates] = []
    said: list[Judgement] = []
    tables = [(data / "preferences.parquet", Preference), (data / "rankings.parquet", Ranking)]
    if not any(path.is_file() for path, _ in tables):
        raise ValueError(f"a judge is the dataset, and {data} holds neither preferences nor rankings: set curate.preferences or rankings")
    for path, kind in tables:
        for record in read_table(path, kind) if path.is_file() else []:
            row, judgement = _of_pair(record, seed) if isinstance(record, Preference) else _of_ranking(record)
            rows.append(row)
            said.append(judgement)
    return rows, said


def _of_pair(pair: Preference, seed: int) -> tuple[Candidates, Judgement]:
    swapped = derive_seed(seed, "labelled", pair.id) % 2 == 1
    texts, ranks = ((pair.rejected, pair.chosen), (1, 0)) if swapped else ((pair.chosen, pair.rejected), (0, 1))
    scores = tuple(pair.margin * (1 - rank) for rank in ranks) if pair.margin > 0 else ()
    return _given(pair, texts, ranks, scores)


def _of_ranking(ranking: Ranking) -> tuple[Candidates, Judgement]:
    """Of equal texts the first one's rank counts."""
    places = [ranking.completions.index(text) for text in dict.fromkeys(ranking.completions)]
    texts = tuple(ranking.completions[place] for place in places)
    ranks = dense_ranks([-ranking.ranks[place] for place in places])
    return _given(ranking, texts, ranks, tuple(ranking.scores[place] for place in places) if ranking.scores else ())


def _given(
    record: Preference | Ranking, texts: tuple[str, ...], ranks: tuple[int, ...], scores: tuple[float, ...]
) -> tuple[Candidates, Judgement]:
    name = record_id("labelled", record.id, record.prompt, list(texts))
    row = Candidates(name, record.source, record.prompt, texts, ("dataset",) * len(texts))
    return row, Judgement(name, record.source, "dataset", record.prompt, texts, ranks, scores=scores)
