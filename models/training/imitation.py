"""Likelihood training on groups: what supervised fine-tuning and rejection sampling share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from data.packing import Group, Packed, pack
from models.configs.sft import SFTConfig
from models.loading import load_policy, save_policy
from models.logprobs import token_logps
from models.lora import add_adapters
from models.losses.sft import sft_loss
from models.losses.sums import Sums, mean_of
from models.parallel import micro_batches, shard
from models.run import Run
from models.training.core import Algorithm, fit
from models.training.optimiser import Trainee
from models.training.order import batch_indices, updates_for


@dataclass(frozen=True)
class Batch:
    """A micro-batch and the denominators of its whole update."""

    packed: Packed
    tokens: int
    sequences: int


class Imitation(Algorithm):
    """Maximise the likelihood of the scored tokens of every group."""

    def __init__(self, policy: Any, groups: list[Group], config: SFTConfig, seed: int, scale: float):
        self.policy, self.groups, self.config, self.seed = policy, groups, config, seed
        self.max_tokens = int(config.micro_batch_tokens * scale)

    def batches(self, update: int) -> list[Batch]:
        return self.cut([self.groups[i] for i in batch_indices(len(self.groups), self.config.batch_size, update, self.seed, "imitation")])

    def cut(self, chosen: list[Group]) -> list[Batch]:
        """The groups of an update as micro-batches."""
        packs = [pack(part).to(self.policy.device) for part in micro_batches(chosen, self.max_tokens)]
        tokens = sum(len(p.target_S) for p in packs)
        return [Batch(p, tokens, len(chosen)) for p in packs]

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        logp_S, entropy_S = token_logps(self.policy, batch.packed)
        p = batch.packed
        loss, sums = sft_loss(logp_S, p.completion_S, p.lengths_C(), self.config.normaliser, batch.tokens, batch.sequences)
        return loss, sums | {"train/entropy_nats": mean_of(entropy_S)}


def imitate(config: SFTConfig, parent: Path, groups: list[Group], seed: int, run: Run) -> dict[str, Any]:
    """Train the policy in ``parent`` on ``groups`` and write it to ``run.out``."""
    policy = load_policy(parent, run.device, trainable=True)
    add_adapters(policy, config.lora, seed)
    shard(policy, run.device)
    updates = updates_for(len(groups), config.batch_size, config.epochs, config.max_updates)
    algorithm = Imitation(policy, groups, config, seed, run.micro_batch_scale)
    loop = fit(run, algorithm, {"policy": Trainee(policy, config.optim)}, updates, config.checkpoint)
    save_policy(policy, parent, run.out)
    return {"updates": updates, "examples": len(groups), "skipped_updates": loop.skipped}
