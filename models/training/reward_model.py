"""Stage entry: a reward model from preference pairs or rankings.

Axes: ``P`` pairs, ``C`` completions (of pairs: chosen and rejected in turn), ``T`` tokens of the longest completion, ``M`` ordered pairs of
a ranking's completions.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.packing import Group
from data.templates import load_tokenizer
from models.calibration import REPORT_FILE, calibration_metrics, judge_probabilities, subsets
from models.compared import compare_completions
from models.configs.guidance import TokenRewardConfig
from models.configs.reward_model import RewardModelConfig
from models.heads import HeadModel, RewardRule, ScalarModel, new_scalar, save_scalar
from models.held_out import TABLES, other_part, require_apart
from models.lora import add_adapters
from models.losses.guidance import prefix_bradley_terry_loss
from models.losses.rankings import centring_penalty, k_wise_loss
from models.losses.reward_model import bradley_terry_loss, tie_aware_loss
from models.losses.sums import Sums, mean_of
from models.parallel import shard
from models.preflight import check_completions_end
from models.rendering import eos_ids
from models.rewards import score_groups
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.order import updates_for
from models.training.pairs import Batch, PairAlgorithm, Pairs, read_pairs
from models.training.rankings import RankedBatch, RankingAlgorithm, Rankings, read_rankings


class BradleyTerry(PairAlgorithm):
    """Score chosen above rejected."""

    def __init__(self, model: ScalarModel, pairs: Pairs, config: RewardModelConfig, seed: int, run: Run):
        super().__init__(pairs, config.batch_size, config.micro_batch_tokens, seed, run, "reward_model")
        self.model, self.centring, self.tie_threshold = model, config.centring_coefficient, config.tie_threshold
        self.margin_P = pairs.margin_P if config.use_margin else torch.zeros_like(pairs.margin_P)

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        score_P2 = self.model.at_ends(batch.packed).view(-1, 2)
        margin_P = self.margin_P[batch.index_P].to(score_P2.device)
        if self.pairs.tied_P is None:
            loss, sums = bradley_terry_loss(score_P2[:, 0], score_P2[:, 1], margin_P, batch.pairs)
        else:
            tied_P = self.pairs.tied_P[batch.index_P].to(score_P2.device)
            loss, sums = tie_aware_loss(score_P2[:, 0], score_P2[:, 1], margin_P, tied_P, self.tie_threshold, batch.pairs)
        if not self.centring:
            return loss, sums
        penalty_P = self.centring * centring_penalty(score_P2[:, 0], score_P2[:, 1])
        loss = loss + penalty_P.sum() / batch.pairs
        own = len(score_P2)
        return loss, sums | {"train/loss": (loss.detach() * batch.pairs, float(own)), "reward_model/centring_loss": mean_of(penalty_P)}


class PrefixBradleyTerry(BradleyTerry):
    """Score every prefix of chosen above the prefix of rejected of the same length; a completion that has ended stays whole."""

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        length_C = batch.packed.lengths_C()
        width = int(length_C.max())
        score_CT = batch.packed.unflatten(self.model.at_tokens(batch.packed), width)
        position_T = torch.arange(width, device=score_CT.device)
        whole_CT = score_CT.gather(1, torch.minimum(position_T, length_C[:, None] - 1))
        mask_PT = position_T < length_C.view(-1, 2).amax(-1, keepdim=True)
        return prefix_bradley_terry_loss(whole_CT[0::2], whole_CT[1::2], mask_PT, batch.pairs)


class KWise(RankingAlgorithm):
    """Score each completion of a ranking above all that rank below it."""

    def __init__(self, model: ScalarModel, rankings: Rankings, config: RewardModelConfig, seed: int, run: Run):
        super().__init__(rankings, config.batch_size, config.micro_batch_tokens, seed, run, "reward_model")
        self.model, self.centring, self.use_margin = model, config.centring_coefficient, config.use_margin

    def loss(self, batch: RankedBatch) -> tuple[Tensor, Sums]:
        score_C = self.model.at_ends(batch.packed)
        better_M, worse_M = score_C[batch.better_M], score_C[batch.worse_M]
        margin_M = batch.margin_M if self.use_margin else torch.zeros_like(batch.margin_M)
        loss, sums = k_wise_loss(better_M, worse_M, margin_M, batch.weight_M, batch.prompts)
        if self.centring:
            penalty_M = self.centring * centring_penalty(better_M, worse_M) * batch.weight_M
            loss = loss + penalty_M.sum() / batch.prompts
            sums["reward_model/centring_loss"] = (penalty_M.detach().sum(), float(batch.own_prompts))
        return loss, sums | {
            "train/loss": (loss.detach() * batch.prompts, float(batch.own_prompts)),
            "reward_model/margin": mean_of(better_M - worse_M),
            "reward_model/chosen_reward": mean_of(better_M),
            "reward_model/rejected_reward": mean_of(worse_M),
        }


MEASURED_PAIRS = 512  # of the training pairs, by which a model of the held-out ones is measured: its interval is narrow enough
PAIR_LOSSES = {"bradley_terry": BradleyTerry, "prefix_bradley_terry": PrefixBradleyTerry}


def train(config: RewardModelConfig, *, policy: Path, preferences: Path, seed: int, run: Run) -> dict[str, Any]:
    """Train a scalar head on the backbone of ``policy``; measure it on pairs that it does not learn from, where there are any.

    The saved rule makes rewards of the training completions mean 0 and deviation 1. ``report.json`` holds accuracy and calibration on the
    held-out pairs, of all and by subset; of a model of the held-out pairs, on the first 512 of the others.

    Raises:
        ValueError: it is to learn from held-out pairs and there are none, or they share a prompt with the others.
    """
    if config.pairs == "test":
        require_apart(preferences)
    model = new_scalar(policy, seed, run.device)
    add_adapters(model.backbone, config.lora, seed)
    shard(model, run.device)
    algorithm, groups, comparisons = _algorithm(config, model, policy, preferences, seed, run)
    check_completions_end(groups, eos_ids(policy, load_tokenizer(policy)))
    updates = updates_for(len(groups), config.batch_size, config.epochs, config.max_updates)
    loop = fit(run, algorithm, {"model": Trainee(model, config.optim)}, updates, config.checkpoint)
    model.requires_grad_(False)
    model.rule = replace(rule_of(model, groups, comparisons, config.micro_batch_tokens), pairs=config.pairs)
    unseen = preferences / TABLES[other_part(config.pairs)]
    measured = measure(model, unseen, policy, config, run, updates, most=MEASURED_PAIRS if config.pairs == "test" else 0)
    save_scalar(model, policy, run.out)
    return {"updates": updates, "pairs": comparisons, "skipped_updates": loop.skipped} | measured


def _algorithm(
    config: RewardModelConfig, model: ScalarModel, policy: Path, preferences: Path, seed: int, run: Run
) -> tuple[BradleyTerry | KWise, list[Group], int]:
    """The loss in force, what it learns from, and how many comparisons that makes."""
    if config.loss != "k_wise":
        pairs = read_pairs(preferences / TABLES[config.pairs], policy, config.max_tokens, run, ties=config.tie_threshold > 0)
        return PAIR_LOSSES[config.loss](model, pairs, config, seed, run), pairs.groups, len(pairs.groups)
    rankings = read_rankings(preferences, policy, config.max_tokens, run, part=config.pairs)
    if config.use_margin and not rankings.scored:
        raise ValueError("use_margin needs scores, and these rankings have ranks only: set use_margin to false, or rank with a judge")
    return KWise(model, rankings, config, seed, run), rankings.groups, sum(map(len, rankings.pairs))


def rule_of(model: HeadModel, groups: Sequence[Group], comparisons: int, max_tokens: int) -> RewardRule:
    """The rule under which rewards of these completions have mean 0 and deviation 1."""
    scores = torch.tensor([s for row in score_groups(model, groups[:512], max_tokens) for s in row])
    return RewardRule(float(scores.mean()), max(float(scores.std(correction=0)), 1e-6), comparisons)


def measure(
    model: HeadModel, table: Path, policy: Path, config: RewardModelConfig | TokenRewardConfig, run: Run, updates: int, most: int = 0
) -> dict[str, Any]:
    """Accuracy and calibration on the pairs of a table, p = sigmoid(r_chosen - r_rejected) of the rewards before the rule scales them.

    Nothing where there is no such table. ``most``: the first so many pairs only; 0 = all.
    """
    if not table.is_file():
        return {}
    held_out = read_pairs(table, policy, config.max_tokens, run, most=most)
    p_P = compare_completions(model, held_out.groups, config.micro_batch_tokens).p_P
    judged = judge_probabilities(p_P, subsets(held_out.groups, held_out.margin_P.tolist(), held_out.sources))
    (run.out / REPORT_FILE).write_text(json.dumps(judged, indent=1), encoding="utf-8")
    run.report(calibration_metrics(judged), updates)
    kept = ("accuracy", "accuracy_low", "accuracy_high", "calibration_error", "brier")
    return {name: judged[name] for name in kept} | {"held_out_pairs": judged["pairs"]}
