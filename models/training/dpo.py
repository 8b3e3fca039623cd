"""Stage entry: direct preference optimisation, with the loss that the configuration names.

Axes: ``P`` pairs, ``C`` completions (chosen and rejected in turn).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.configs.dpo import DPOConfig
from models.loading import load_policy, save_policy
from models.logprobs import sequence_logps, token_logps
from models.lora import add_adapters
from models.losses.dpo import Side, dpo_loss
from models.losses.sums import Sums
from models.parallel import loading_device, shard
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.order import updates_for
from models.training.pairs import Batch, PairAlgorithm, Pairs, read_pairs
from models.training.reference import MovingReference


class PreferenceOptimisation(PairAlgorithm):
    """Widen the gap between chosen and rejected.

    The reference is a table of log-probabilities where it stands still, a model where it moves, and neither where the loss has none.
    """

    ref_logp_P2: Tensor | None = None
    reference: MovingReference | None = None

    def __init__(self, policy: Any, pairs: Pairs, config: DPOConfig, seed: int, run: Run):
        super().__init__(pairs, config.batch_size, config.micro_batch_tokens, seed, run, "dpo")
        self.policy, self.config = policy, config

    def batches(self, update: int) -> list[Batch]:
        if self.reference is not None:
            self.reference.follow(update)
        return super().batches(update)

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        logp_S, _ = token_logps(self.policy, batch.packed)
        logp_P2 = batch.packed.sum_by_completion(logp_S).view(-1, 2)
        length_P2 = batch.packed.lengths_C().view(-1, 2)
        ref_P2 = self._reference_logps(batch)
        chosen, rejected = (Side(logp_P2[:, i], None if ref_P2 is None else ref_P2[:, i], length_P2[:, i]) for i in (0, 1))
        tied_P = None if self.pairs.tied_P is None else self.pairs.tied_P[batch.index_P].to(logp_P2.device)
        return dpo_loss(chosen, rejected, self.config, batch.pairs, tied_P, self.config.tie_threshold)

    @torch.no_grad()
    def _reference_logps(self, batch: Batch) -> Tensor | None:
        if self.reference is not None:
            return batch.packed.sum_by_completion(token_logps(self.reference.model, batch.packed)[0]).view(-1, 2)
        return None if self.ref_logp_P2 is None else self.ref_logp_P2[batch.index_P].to(batch.packed.input_ids_N.device)

    def state(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return ({}, {}) if self.reference is None else self.reference.state()

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if self.reference is not None:
            self.reference.load_state(tensors, state)


def train(config: DPOConfig, *, policy: Path, preferences: Path, seed: int, run: Run) -> dict[str, Any]:
    """Optimise ``policy`` on the pairs.

    The reference is the policy as it comes in. While it stands still its log-probabilities are computed once, before any update.
    """
    pairs = read_pairs(preferences / "preferences.parquet", policy, config.max_tokens, run, ties=config.tie_threshold > 0)
    model = load_policy(policy, run.device, trainable=True)
    add_adapters(model, config.lora, seed)
    shard(model, run.device)
    algorithm = PreferenceOptimisation(model, pairs, config, seed, run)
    if config.reference_sync_every:
        reference = load_policy(policy, loading_device(run.device))
        shard(reference, run.device)
        algorithm.reference = MovingReference(reference, model, config.reference_sync_every, config.reference_sync_share)
    elif config.has_reference:
        algorithm.ref_logp_P2 = sequence_logps(model, pairs.groups, algorithm.max_tokens).view(-1, 2)
    updates = updates_for(len(pairs.groups), config.batch_size, config.epochs, config.max_updates)
    loop = fit(run, algorithm, {"policy": Trainee(model, config.optim)}, updates, config.checkpoint)
    save_policy(model, policy, run.out)
    return {"updates": updates, "pairs": len(pairs.groups), "skipped_updates": loop.skipped}
