"""Stage entry: a reward for every next token, from preference pairs (FaRMA).

Axes: ``P`` pairs, ``C`` completions (chosen and rejected in turn), ``S`` scored tokens, ``E`` hidden width, ``V`` vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.configs.guidance import TokenRewardConfig
from models.heads import TokenRewardModel, new_token_reward, save_scalar
from models.held_out import TABLES
from models.loading import load_policy
from models.logprobs import head_weight, hidden_states
from models.losses.guidance import best_continuation_loss
from models.losses.reward_model import bradley_terry_loss
from models.losses.sums import Sums
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.order import updates_for
from models.training.pairs import Batch, PairAlgorithm, Pairs, read_pairs
from models.training.reward_model import measure, rule_of

CHUNK_TOKENS = 256  # scores of this many prefixes exist at once, each as wide as the vocabulary


@dataclass(frozen=True)
class ConstraintBatch(Batch):
    """A micro-batch on which prefixes are compared with their continuations; ``prefixes`` are those of the whole update."""

    prefixes: int


class TokenReward(PairAlgorithm):
    """In turn, on the same pairs: Bradley-Terry on whole completions, and the score of a prefix pulled to that of its best continuation.

    Even updates: L1 = -log sigmoid(r(chosen) - r(rejected)). Odd updates: L2 = 1/2 (r(a^{1:i}) - max_a r(a^{1:i}, a))^2. The fixed point of
    the two is r(a^{1:i}) = the highest reward of a completion that begins with a^{1:i}. Deviation from the paper: see ``min_chance``.

    Source: Rashid et al. 2025, "Towards Cost-Effective Reward Guided Text Generation".
    """

    def __init__(self, model: TokenRewardModel, policy: Any, pairs: Pairs, config: TokenRewardConfig, seed: int, run: Run):
        super().__init__(pairs, config.batch_size, config.micro_batch_tokens, seed, run, "token_reward")
        self.model, self.policy, self.min_chance = model, policy, config.min_chance

    def batches(self, update: int) -> list[Batch]:
        batches = super().batches(update // 2)
        if update % 2 == 0:
            return batches
        prefixes = sum(len(b.packed.target_S) - b.packed.n_completions for b in batches)
        return [ConstraintBatch(b.packed, b.index_P, b.pairs, prefixes) for b in batches] if prefixes else []

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        if isinstance(batch, ConstraintBatch):
            return constraint(self.model, self.policy, batch, self.min_chance)
        score_P2 = self.model.at_ends(batch.packed).view(-1, 2)
        return bradley_terry_loss(score_P2[:, 0], score_P2[:, 1], torch.zeros_like(score_P2[:, 0]), batch.pairs)


def constraint(model: TokenRewardModel, policy: Any, batch: ConstraintBatch, min_chance: float) -> tuple[Tensor, Sums]:
    """Every prefix that does not end its completion against the best of its continuations, one token longer."""
    packed = batch.packed
    hidden_NE = hidden_states(model.backbone, packed)
    inner = (packed.own_S != packed.last_C[packed.completion_S]).nonzero()[:, 0]
    score_S = model.chosen(hidden_NE[packed.source_S[inner]], packed.target_S[inner])
    with torch.no_grad():
        after_S = packed.own_S[inner]
        policy_SE = hidden_states(policy.base_model, packed)[after_S] if min_chance else None
        given_S = model.chosen(hidden_NE[after_S], packed.target_S[inner + 1])
        best_S = torch.maximum(best_scores(model, hidden_NE[after_S], policy, policy_SE, min_chance), given_S)
    return best_continuation_loss(score_S, best_S, batch.prefixes)


def best_scores(model: TokenRewardModel, hidden_SE: Tensor, policy: Any, policy_SE: Tensor | None, min_chance: float) -> Tensor:
    """The highest score of a next token that the policy may take, for each prefix ``[S]``; chunk by chunk, as wide as the vocabulary."""
    best = []
    for begin in range(0, len(hidden_SE), CHUNK_TOKENS):
        part = slice(begin, begin + CHUNK_TOKENS)
        score_SV = model.every(hidden_SE[part])
        if policy_SE is not None:
            p_SV = (policy_SE[part] @ head_weight(policy).T).to(score_SV.dtype).softmax(-1)
            score_SV = score_SV.masked_fill(p_SV < min_chance, -torch.inf)
        best.append(score_SV.amax(-1))
    return torch.cat(best) if best else hidden_SE.new_zeros(0, dtype=model.head.weight.dtype)


def train(config: TokenRewardConfig, *, policy: Path, preferences: Path, seed: int, run: Run) -> dict[str, Any]:
    """Train a head as wide as the vocabulary on the backbone of ``policy``; measure it on held-out pairs where there are any."""
    pairs = read_pairs(preferences / "preferences.parquet", policy, config.max_tokens, run)
    model = new_token_reward(policy, run.device)
    updates = 2 * updates_for(len(pairs.groups), config.batch_size, config.epochs)
    updates = min(updates, config.max_updates) if config.max_updates else updates
    frozen = load_policy(policy, run.device) if config.min_chance else None
    loop = fit(
        run, TokenReward(model, frozen, pairs, config, seed, run), {"model": Trainee(model, config.optim)}, updates, config.checkpoint
    )
    model.requires_grad_(False)
    model.rule = rule_of(model, pairs.groups, len(pairs.groups), config.micro_batch_tokens)
    measured = measure(model, preferences / TABLES["test"], policy, config, run, updates)
    save_scalar(model, policy, run.out)
    return {"updates": updates, "pairs": len(pairs.groups), "skipped_updates": loop.skipped} | measured
