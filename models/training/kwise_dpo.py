"""Stage entry: direct preference optimisation on K-way rankings.

Axes: ``C`` completions, ``M`` ordered pairs of a ranking's completions.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.configs.kwise_dpo import KWiseDPOConfig
from models.loading import load_policy, save_policy
from models.logprobs import sequence_logps, token_logps
from models.losses.rankings import k_wise_loss
from models.losses.sums import Sums, mean_of
from models.parallel import shard
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.order import updates_for
from models.training.rankings import RankedBatch, RankingAlgorithm, Rankings, read_rankings


class KWisePreferenceOptimisation(RankingAlgorithm):
    """Spread log-probabilities in the order of the ranks, tied to a frozen reference."""

    def __init__(self, policy: Any, rankings: Rankings, ref_logp_C: Tensor, config: KWiseDPOConfig, seed: int, run: Run):
        super().__init__(rankings, config.batch_size, config.micro_batch_tokens, seed, run, "kwise_dpo")
        self.policy, self.ref_logp_C, self.beta = policy, ref_logp_C, config.beta

    def loss(self, batch: RankedBatch) -> tuple[Tensor, Sums]:
        """The K-wise loss of the implicit rewards beta * (logp - ref_logp)."""
        logp_S, _ = token_logps(self.policy, batch.packed)
        logp_C = batch.packed.sum_by_completion(logp_S)
        reward_C = self.beta * (logp_C - self.ref_logp_C[batch.row_C].to(logp_C.device))
        better_M, worse_M = reward_C[batch.better_M], reward_C[batch.worse_M]
        loss, sums = k_wise_loss(better_M, worse_M, torch.zeros_like(batch.margin_M), batch.weight_M, batch.prompts)
        return loss, sums | {
            "train/loss": (loss.detach() * batch.prompts, float(batch.own_prompts)),
            "dpo/margin": mean_of(better_M - worse_M),
            "dpo/chosen_logp_nats": mean_of(logp_C[batch.better_M]),
            "dpo/rejected_logp_nats": mean_of(logp_C[batch.worse_M]),
            "dpo/chosen_reward": mean_of(better_M),
            "dpo/rejected_reward": mean_of(worse_M),
        }


def train(config: KWiseDPOConfig, *, policy: Path, preferences: Path, seed: int, run: Run) -> dict[str, Any]:
    """Optimise ``policy`` on ``rankings.parquet`` of ``preferences``.

    The reference is the policy as it comes in: its log-probabilities are computed once, before any update.
    """
    rankings = read_rankings(preferences, policy, config.max_tokens, run)
    model = load_policy(policy, run.device, trainable=True)
    shard(model, run.device)
    ref_logp_C = sequence_logps(model, rankings.groups, int(config.micro_batch_tokens * run.micro_batch_scale))
    updates = updates_for(len(rankings.groups), config.batch_size, config.epochs, config.max_updates)
    algorithm = KWisePreferenceOptimisation(model, rankings, ref_logp_C, config, seed, run)
    loop = fit(run, algorithm, {"policy": Trainee(model, config.optim)}, updates, config.checkpoint)
    save_policy(model, policy, run.out)
    return {"updates": updates, "rankings": len(rankings.groups), "skipped_updates": loop.skipped}
