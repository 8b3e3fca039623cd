"""K-way rankings as batches: what K-wise reward modelling and K-wise DPO share.

All completions of a prompt go through one packed forward pass.

Axes: ``C`` completions, ``M`` ordered pairs of completions of one prompt.
"""

from dataclasses import dataclass
from itertools import accumulate, permutations
from math import comb
from pathlib import Path

import torch
from torch import Tensor

from data.packing import Group, Packed, pack
from data.records import Preference, Ranking, normalised_text
from data.tables import read_table
from data.templates import load_tokenizer
from models.held_out import TABLES
from models.parallel import micro_batches
from models.rendering import drop_long, ranking_group
from models.run import Run
from models.training.core import Algorithm
from models.training.order import batch_indices


@dataclass(frozen=True)
class Pair:
    """Of one ranking: which completion is better than which, and by how much in the judge's unit (0 where only ranks are known)."""

    better: int
    worse: int
    margin: float


@dataclass(frozen=True)
class Rankings:
    """Rendered rankings, the pairs that each of them orders, and the row of its first completion among all."""

    groups: list[Group]
    pairs: list[list[Pair]]
    starts: list[int]
    scored: bool  # every ranking has the judge's scores


@dataclass(frozen=True)
class RankedBatch:
    """A micro-batch of rankings. ``row_C`` counts completions of the whole table; ``prompts`` are those of the whole update."""

    packed: Packed
    row_C: Tensor
    better_M: Tensor  # rows of this micro-batch
    worse_M: Tensor
    margin_M: Tensor
    weight_M: Tensor  # 1/C(k,2) of the pair's prompt
    prompts: int

    @property
    def own_prompts(self) -> int:
        """Prompts of this micro-batch alone."""
        return len(self.packed.group_starts_K) - 1


def ordered_pairs(ranking: Ranking) -> list[Pair]:
    """Every pair (i, j) with a better rank of i; ties make none, nor does a text with itself, whatever ranks it was given.

    By hand: ranks (0, 1, 1): (0, 1) and (0, 2).
    """
    scores = ranking.scores or (0.0,) * len(ranking.ranks)
    texts = [text.strip() for text in ranking.completions]
    return [
        Pair(i, j, scores[i] - scores[j])
        for i, j in permutations(range(len(ranking.ranks)), 2)
        if ranking.ranks[i] < ranking.ranks[j] and texts[i] != texts[j]
    ]


def read_rankings(folder: Path, policy: Path, max_tokens: int, run: Run, *, part: str = "train") -> Rankings:
    """Rankings of ``folder``, rendered with the tokenizer of ``policy``: of the prompts whose pairs are not held out, or of the others.

    Those that order nothing are left out and counted.

    Raises:
        ValueError: the folder holds pairs only, a ranking has fewer than two completions, or all are tied.
    """
    path = folder / "rankings.parquet"
    if not path.is_file() and (folder / "preferences.parquet").is_file():
        raise ValueError(
            f"{folder} holds pairs (preferences.parquet) and no rankings: use the pairwise loss (reward_model loss bradley_terry, or the "
            "stage dpo), or give data with rankings.parquet (curate.rankings, or the stage collect_preferences)"
        )
    records = _of_part(read_table(path, Ranking), folder / TABLES["test"], part, run)
    lonely = next((r for r in records if len(r.completions) < 2), None)
    if lonely is not None:
        raise ValueError(f"ranking {lonely.id} has {len(lonely.completions)} completion: a ranking orders at least two; drop it")
    ordered = [r for r in records if ordered_pairs(r)]
    if len(ordered) < len(records):
        run.log(f"{len(records) - len(ordered)} of {len(records)} rankings have all completions tied, teach nothing and are left out")
    if not ordered:
        raise ValueError(f"all {len(records)} rankings in {path} are ties from end to end: nothing can be learned from them")
    tokenizer = load_tokenizer(policy)
    groups = [ranking_group(tokenizer, record) for record in ordered]
    kept = drop_long(groups, max_tokens, run)
    sizes = [len(groups[i].completions) for i in kept]
    return Rankings(
        [groups[i] for i in kept], [ordered_pairs(ordered[i]) for i in kept], [0, *accumulate(sizes)][:-1], all(r.scores for r in ordered)
    )


def _of_part(records: list[Ranking], table: Path, part: str, run: Run) -> list[Ranking]:
    """Preference collection ranks the completions of all prompts and holds out some prompts' pairs."""
    if not table.is_file():
        return records
    held_out = {normalised_text(pair.prompt) for pair in read_table(table, Preference)}
    kept = [record for record in records if (normalised_text(record.prompt) in held_out) == (part == "test")]
    if part == "test" and not kept:
        raise ValueError(f"no ranking in {table.parent} is of a held-out prompt: train on the held-out pairs, with loss bradley_terry")
    if len(kept) < len(records):
        which = "held out" if part == "train" else "not held out"
        run.log(f"{len(records) - len(kept)} of {len(records)} rankings are of prompts whose pairs are {which}, and are left out")
    return kept


class RankingAlgorithm(Algorithm):
    """Batches of rankings in a seeded order; the loss is the method's own."""

    def __init__(self, rankings: Rankings, batch_size: int, micro_batch_tokens: int, seed: int, run: Run, tag: str):
        self.rankings, self.batch_size, self.seed, self.device, self.tag = rankings, batch_size, seed, run.device, tag
        self.max_tokens = int(micro_batch_tokens * run.micro_batch_scale)

    def batches(self, update: int) -> list[RankedBatch]:
        chosen = batch_indices(len(self.rankings.groups), self.batch_size, update, self.seed, self.tag)
        batches, begin = [], 0
        for part in micro_batches([self.rankings.groups[i] for i in chosen], self.max_tokens):
            batches.append(self._batch(chosen[begin : begin + len(part)], len(chosen)))
            begin += len(part)
        return batches

    def _batch(self, members: list[int], prompts: int) -> RankedBatch:
        groups = [self.rankings.groups[i] for i in members]
        rows = [self.rankings.starts[i] + g for i, group in zip(members, groups, strict=True) for g in range(len(group.completions))]
        pairs, begin = [], 0
        for i, group in zip(members, groups, strict=True):
            share = 1 / comb(len(group.completions), 2)
            pairs += [(begin + p.better, begin + p.worse, p.margin, share) for p in self.rankings.pairs[i]]
            begin += len(group.completions)
        better, worse, margin, weight = zip(*pairs, strict=True)
        return RankedBatch(
            pack(groups).to(self.device),
            torch.tensor(rows),
            better_M=torch.tensor(better, device=self.device),
            worse_M=torch.tensor(worse, device=self.device),
            margin_M=torch.tensor(margin, dtype=torch.float32, device=self.device),
            weight_M=torch.tensor(weight, dtype=torch.float32, device=self.device),
            prompts=prompts,
        )
