"""Stage entry: Kahneman-Tversky optimisation.

Axes: ``U`` updates, ``B`` completions of an update, ``C`` completions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.packing import Group, Packed, pack
from data.records import Label
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models.configs.kto import KTOConfig
from models.loading import load_policy, save_policy
from models.logprobs import sequence_logps, token_logps
from models.losses.kto import kto_loss, reference_point
from models.losses.sums import Sums
from models.parallel import micro_batches, shard
from models.rendering import completion_ids, drop_long
from models.run import Run
from models.training.core import Algorithm, fit
from models.training.optimiser import Trainee
from models.training.order import batch_indices, updates_for


@dataclass(frozen=True)
class Labels:
    """Rendered completions, each behind its prompt, and whether they are desirable."""

    groups: list[Group]
    desirable_C: Tensor


@dataclass(frozen=True)
class Batch:
    """A micro-batch of completions: which they are, how many the whole update has, and what their rewards are measured from."""

    packed: Packed
    index_C: Tensor
    completions: int
    kl_nats: float


class KahnemanTversky(Algorithm):
    """Raise desirable completions above what the policy gained on average, push undesirable ones below.

    The reference is a table of log-probabilities: of every completion, and of the mismatched ones of every update.
    """

    ref_logp_C: Tensor
    mismatched_ref_logp_UB: Tensor

    def __init__(self, policy: Any, labels: Labels, config: KTOConfig, seed: int, run: Run):
        self.policy, self.labels, self.config, self.seed = policy, labels, config, seed
        self.max_tokens = int(config.micro_batch_tokens * run.micro_batch_scale)

    def freeze_reference(self, updates: int) -> None:
        """Take the policy as it is now for the reference."""
        mismatched = [group for update in range(updates) for group in self.mismatched(update)]
        self.ref_logp_C = sequence_logps(self.policy, self.labels.groups, self.max_tokens)
        self.mismatched_ref_logp_UB = sequence_logps(self.policy, mismatched, self.max_tokens).view(updates, -1)

    def chosen(self, update: int) -> list[int]:
        """The completions of an update."""
        return batch_indices(len(self.labels.groups), self.config.batch_size, update, self.seed, "kto")

    def mismatched(self, update: int) -> list[Group]:
        """Each prompt of an update with a completion of another prompt."""
        return mismatch([self.labels.groups[i] for i in self.chosen(update)])

    def batches(self, update: int) -> list[Batch]:
        logp_B = sequence_logps(self.policy, self.mismatched(update), self.max_tokens)
        kl_nats = reference_point(logp_B, self.mismatched_ref_logp_UB[update])
        chosen = self.chosen(update)
        batches, begin = [], 0
        for part in micro_batches([self.labels.groups[i] for i in chosen], self.max_tokens):
            index_C = torch.tensor(chosen[begin : begin + len(part)])
            batches.append(Batch(pack(part).to(self.policy.device), index_C, len(chosen), kl_nats))
            begin += len(part)
        return batches

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        logp_S, _ = token_logps(self.policy, batch.packed)
        logp_C = batch.packed.sum_by_completion(logp_S)
        ref_logp_C, desirable_C = (x[batch.index_C].to(logp_C.device) for x in (self.ref_logp_C, self.labels.desirable_C))
        return kto_loss(logp_C, ref_logp_C, desirable_C, batch.kl_nats, self.config, batch.completions)


def mismatch(groups: Sequence[Group]) -> list[Group]:
    """Each group's prompt with the completion of the next group that has another prompt; of the very next where all prompts are one.

    By hand: prompts (x, x, y) get the completions of (y, y, the first x).
    """
    count = len(groups)
    partners = []
    for i, group in enumerate(groups):
        others = ((i + step) % count for step in range(1, count))
        apart = (j for j in others if list(groups[j].prompt) != list(group.prompt))
        partners.append(Group(group.prompt, groups[next(apart, (i + 1) % count)].completions))
    return partners


def read_labels(path: Path, policy: Path, max_tokens: int, run: Run) -> Labels:
    """Labelled completions of a table, rendered with the tokenizer of ``policy``.

    Raises:
        ValueError: all of them have the same label.
    """
    tokenizer = load_tokenizer(policy)
    records = read_table(path, Label)
    groups = [Group(render_prompt(tokenizer, r.prompt), [completion_ids(tokenizer, r.prompt, r.completion)]) for r in records]
    kept = drop_long(groups, max_tokens, run)
    desirable_C = torch.tensor([records[i].desirable for i in kept])
    good = int(desirable_C.sum())
    if good in (0, len(kept)):
        kind = "desirable" if good else "undesirable"
        raise ValueError(f"all {len(kept)} labels of {path.name} are {kind}: KTO needs both kinds; collect more, or move label_threshold")
    return Labels([groups[i] for i in kept], desirable_C)


def train(config: KTOConfig, *, policy: Path, labels: Path, seed: int, run: Run) -> dict[str, Any]:
    """Optimise ``policy`` on ``labels.parquet``, of curated data or of collected preferences.

    The reference is the policy as it comes in: its log-probabilities are computed once, before any update.
    """
    labelled = read_labels(labels / "labels.parquet", policy, config.max_tokens, run)
    model = load_policy(policy, run.device, trainable=True)
    shard(model, run.device)
    updates = updates_for(len(labelled.groups), config.batch_size, config.epochs, config.max_updates)
    algorithm = KahnemanTversky(model, labelled, config, seed, run)
    algorithm.freeze_reference(updates)
    loop = fit(run, algorithm, {"policy": Trainee(model, config.optim)}, updates, config.checkpoint)
    save_policy(model, policy, run.out)
    good = int(labelled.desirable_C.sum())
    return {"updates": updates, "desirable": good, "undesirable": len(labelled.groups) - good, "skipped_updates": loop.skipped}
