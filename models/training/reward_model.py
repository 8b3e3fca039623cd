"""Stage entry: a reward model from preference pairs.

Axes: ``P`` pairs, ``C`` completions (chosen and rejected in turn).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.intervals import wilson
from models.configs.reward_model import RewardModelConfig
from models.heads import RewardRule, ScalarModel, new_scalar, save_scalar
from models.lora import add_adapters
from models.losses.reward_model import bradley_terry_loss
from models.losses.sums import Sums
from models.rewards import score_groups
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.order import updates_for
from models.training.pairs import Batch, PairAlgorithm, Pairs, read_pairs


class BradleyTerry(PairAlgorithm):
    """Score chosen above rejected."""

    def __init__(self, model: ScalarModel, pairs: Pairs, config: RewardModelConfig, seed: int, run: Run):
        super().__init__(pairs, config.batch_size, config.micro_batch_tokens, seed, run, "reward_model")
        self.model = model
        self.margin_P = pairs.margin_P if config.use_margin else torch.zeros_like(pairs.margin_P)

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        score_P2 = self.model.at_ends(batch.packed).view(-1, 2)
        margin_P = self.margin_P[batch.index_P].to(score_P2.device)
        return bradley_terry_loss(score_P2[:, 0], score_P2[:, 1], margin_P, batch.pairs)


def train(config: RewardModelConfig, *, policy: Path, preferences: Path, seed: int, run: Run) -> dict[str, Any]:
    """Train a scalar head on the backbone of ``policy``; measure it on held-out pairs where there are any.

    The saved rule makes rewards of the training completions mean 0 and deviation 1.
    """
    pairs = read_pairs(preferences / "preferences.parquet", policy, config.max_tokens, run)
    model = new_scalar(policy, seed, run.device)
    add_adapters(model.backbone, config.lora, seed)
    updates = updates_for(len(pairs.groups), config.batch_size, config.epochs, config.max_updates)
    loop = fit(run, BradleyTerry(model, pairs, config, seed, run), {"model": Trainee(model, config.optim)}, updates, config.checkpoint)
    model.requires_grad_(False)
    model.rule = _rule(model, pairs, config.micro_batch_tokens)
    held_out = preferences / "test_preferences.parquet"
    measured = _held_out_accuracy(model, held_out, policy, config, run, updates) if held_out.is_file() else {}
    save_scalar(model, policy, run.out)
    return {"updates": updates, "pairs": len(pairs.groups), "skipped_updates": loop.skipped} | measured


def _rule(model: ScalarModel, pairs: Pairs, max_tokens: int) -> RewardRule:
    scores = torch.tensor(score_groups(model, pairs.groups[:512], max_tokens))
    return RewardRule(float(scores.mean()), max(float(scores.std(correction=0)), 1e-6), len(pairs.groups))


def _held_out_accuracy(model: ScalarModel, table: Path, policy: Path, config: RewardModelConfig, run: Run, updates: int) -> dict[str, Any]:
    held_out = read_pairs(table, policy, config.max_tokens, run)
    scores_P2 = score_groups(model, held_out.groups, config.micro_batch_tokens)
    interval = wilson(_hits(scores_P2), len(scores_P2))
    run.report(
        {
            "eval/accuracy": interval.mean,
            "eval/accuracy_low": interval.low,
            "eval/accuracy_high": interval.high,
            "eval/pairs": len(scores_P2),
        },
        updates,
    )
    return {"accuracy": interval.mean, "accuracy_low": interval.low, "accuracy_high": interval.high, "held_out_pairs": len(scores_P2)}


def _hits(scores_P2: Sequence[Sequence[float]]) -> int:
    return sum(chosen > rejected for chosen, rejected in scores_P2)
