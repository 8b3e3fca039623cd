"""Preference pairs as batches: what reward modelling and direct preference optimisation share."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.groups import pair_group
from data.packing import Group, Packed, pack
from data.records import Preference, Tie
from data.tables import read_table
from data.templates import load_tokenizer
from models.parallel import micro_batches
from models.rendering import drop_long
from models.run import Run
from models.training.core import Algorithm
from models.training.order import batch_indices


@dataclass(frozen=True)
class Pairs:
    """Rendered pairs, the margins of their judge and where they come from."""

    groups: list[Group]
    margin_P: Tensor
    sources: list[str]
    tied_P: Tensor | None = None  # True for pairs of which neither is better; None where such were not read


@dataclass(frozen=True)
class Batch:
    """A micro-batch of pairs: which they are, and how many the whole update has."""

    packed: Packed
    index_P: Tensor
    pairs: int


def read_pairs(path: Path, policy: Path, max_tokens: int, run: Run, *, ties: bool = False, most: int = 0) -> Pairs:
    """Pairs of a table, rendered with the tokenizer of ``policy``; with ``ties`` also those of ``ties.parquet`` beside it.

    ``most``: the first so many only; 0 = all.

    Raises:
        ValueError: the folder holds rankings only, or ties are asked for and it has no such table.
    """
    if not path.is_file() and (path.parent / "rankings.parquet").is_file():
        raise ValueError(
            f"{path.parent} holds rankings (rankings.parquet) and no {path.name}: use the K-wise loss (reward_model loss k_wise, or the "
            "stage kwise_dpo), or give data with pairs (curate.preferences, or the stage collect_preferences)"
        )
    tokenizer = load_tokenizer(policy)
    records = read_table(path, Preference)
    records = records[:most] if most else records
    untied = len(records)
    records += _tied(path.with_name("ties.parquet")) if ties else []
    groups = [pair_group(tokenizer, record) for record in records]
    kept = drop_long(groups, max_tokens, run)
    return Pairs(
        [groups[i] for i in kept],
        torch.tensor([records[i].margin for i in kept], dtype=torch.float32),
        [records[i].source for i in kept],
        torch.tensor([i >= untied for i in kept]) if ties else None,
    )


def _tied(table: Path) -> list[Preference]:
    """Ties in the shape of pairs, first and second in place of chosen and rejected."""
    if not table.is_file():
        raise ValueError(f"tie_threshold is set and {table.parent} has no ties.parquet: collect with preferences.ties keep, or set it to 0")
    return [Preference(tie.id, tie.source, tie.prompt, tie.first, tie.second) for tie in read_table(table, Tie)]


class PairAlgorithm(Algorithm):
    """Batches of pairs in a seeded order; the loss is the method's own."""

    def __init__(self, pairs: Pairs, batch_size: int, micro_batch_tokens: int, seed: int, run: Run, tag: str):
        self.pairs, self.batch_size, self.seed, self.device, self.tag = pairs, batch_size, seed, run.device, tag
        self.max_tokens = int(micro_batch_tokens * run.micro_batch_scale)

    def batches(self, update: int) -> list[Batch]:
        chosen = batch_indices(len(self.pairs.groups), self.batch_size, update, self.seed, self.tag)
        batches, begin = [], 0
        for part in micro_batches([self.pairs.groups[i] for i in chosen], self.max_tokens):
            index_P = torch.tensor(chosen[begin : begin + len(part)])
            batches.append(Batch(pack(part).to(self.device), index_P, len(chosen)))
            begin += len(part)
        return batches
