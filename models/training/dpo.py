"""Stage entry: direct preference optimisation.

Axes: ``P`` pairs, ``C`` completions (chosen and rejected in turn).
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from models.configs.dpo import DPOConfig
from models.loading import load_policy, save_policy
from models.logprobs import sequence_logps, token_logps
from models.lora import add_adapters
from models.losses.dpo import dpo_loss
from models.losses.sums import Sums
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.order import updates_for
from models.training.pairs import Batch, PairAlgorithm, Pairs, read_pairs


class PreferenceOptimisation(PairAlgorithm):
    """Widen the gap of log-probabilities between chosen and rejected, tied to a frozen reference."""

    def __init__(self, policy: Any, pairs: Pairs, ref_logp_P2: Tensor, config: DPOConfig, seed: int, run: Run):
        super().__init__(pairs, config.batch_size, config.micro_batch_tokens, seed, run, "dpo")
        self.policy, self.ref_logp_P2, self.beta = policy, ref_logp_P2, config.beta

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        logp_S, _ = token_logps(self.policy, batch.packed)
        logp_P2 = batch.packed.sum_by_completion(logp_S).view(-1, 2)
        ref_P2 = self.ref_logp_P2[batch.index_P].to(logp_P2.device)
        return dpo_loss(logp_P2[:, 0], logp_P2[:, 1], ref_P2[:, 0], ref_P2[:, 1], beta=self.beta, pairs=batch.pairs)


def train(config: DPOConfig, *, policy: Path, preferences: Path, seed: int, run: Run) -> dict[str, Any]:
    """Optimise ``policy`` on the pairs.

    The reference is the policy as it comes in: its log-probabilities are computed once, before any update.
    """
    pairs = read_pairs(preferences / "preferences.parquet", policy, config.max_tokens, run)
    model = load_policy(policy, run.device, trainable=True)
    add_adapters(model, config.lora, seed)
    ref_logp_P2 = sequence_logps(model, pairs.groups, int(config.micro_batch_tokens * run.micro_batch_scale)).view(-1, 2)
    updates = updates_for(len(pairs.groups), config.batch_size, config.epochs, config.max_updates)
    algorithm = PreferenceOptimisation(model, pairs, ref_logp_P2, config, seed, run)
    loop = fit(run, algorithm, {"policy": Trainee(model, config.optim)}, updates, config.checkpoint)
    save_policy(model, policy, run.out)
    return {"updates": updates, "pairs": len(pairs.groups), "skipped_updates": loop.skipped}
