"""Stage entry: online direct preference optimisation.

Axes: ``P`` prompts of a round, ``G`` samples of each, ``C`` = P x G completions, ``T`` tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.packing import Group
from models.configs.online_dpo import OnlineDPOConfig
from models.loading import load_reference, save_policy
from models.losses.dpo import Side, dpo_loss
from models.losses.sums import Sums
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.rollout import Batch, OnPolicy, Rollout, check_finite, entropy_sums


class OnlineDPO(OnPolicy):
    """Of the completions of a prompt, widen the gap between the best and the worst; a round keeps these two and forgets the others."""

    config: OnlineDPOConfig
    reference: Any = None

    def prepare(self, rollout: Rollout) -> None:
        if self.reference is not None:
            ref_logp_CT = self.per_token(rollout, self.logps(self.reference))
            logp_CT = self.per_token(rollout, self.logps(self.policy))
            rollout.tensors["ref_logp"] = ref_logp_CT.sum(-1)
            rollout.metrics["train/kl_nats"] = float((logp_CT - ref_logp_CT).sum(-1).mean())
        check_finite(rollout)
        keep_pairs(rollout)
        rollout.metrics["online_dpo/tied_prompts"] = float(rollout.tensors["tied"].sum())

    def _cut(self, chosen: Sequence[int]) -> list[Batch]:
        assert self.rollout is not None
        tied_P = self.rollout.tensors["tied"]
        return super()._cut([p for p in chosen if not tied_P[p]])

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        """The configured loss of best against worst, mean over the pairs of the update.

        Source: Guo et al. 2024, algorithm 1.
        """
        mask_CT = self.pick(batch, "mask")[0]
        logp_CT, entropy_CT = self.current(batch)
        logp_P2, length_P2 = logp_CT.sum(-1).view(-1, 2), mask_CT.sum(-1).view(-1, 2)
        ref_P2 = None if self.reference is None else self.pick(batch, "ref_logp")[0].view(-1, 2)
        best, worst = (Side(logp_P2[:, i], None if ref_P2 is None else ref_P2[:, i], length_P2[:, i]) for i in (0, 1))
        loss, sums = dpo_loss(best, worst, self.config.preference, batch.sequences // 2)
        return loss, sums | entropy_sums(entropy_CT, mask_CT)


def keep_pairs(rollout: Rollout) -> None:
    """Keep of each prompt the best completion and the worst, in this order, and mark the prompts whose scores are all equal as ``tied``.

    By hand: scores (0.5, 0, 1, 1) keep the third and the second; of equal scores the first counts.
    """
    score_PG = rollout.tensors["score"].view(len(rollout.groups), -1)
    keep_P2 = torch.stack([score_PG.argmax(-1), score_PG.argmin(-1)], dim=-1)
    keep_C = (torch.arange(len(score_PG))[:, None] * score_PG.shape[1] + keep_P2).flatten()
    tensors = {name: tensor[keep_C] for name, tensor in rollout.tensors.items()}
    rollout.groups = [
        Group(group.prompt, [group.completions[g] for g in kept]) for group, kept in zip(rollout.groups, keep_P2.tolist(), strict=True)
    ]
    rollout.tensors = tensors | {"tied": (score_PG == score_PG[:, :1]).all(-1)}
    rollout.tensors["mask"] = rollout.tensors["mask"][:, : rollout.length]


def train(config: OnlineDPOConfig, *, policy: Path, data: Path, seed: int, run: Run, reward: Path | None = None) -> dict[str, Any]:
    """Optimise ``policy`` on the prompts of ``data``. The reference is the policy as it comes in; a loss without one loads none."""
    algorithm = OnlineDPO.load(config, policy=policy, data=data, reward=reward, seed=seed, run=run)
    algorithm.reference = load_reference(algorithm.policy, policy, run.device) if config.preference.has_reference else None
    updates = config.iterations * config.updates_per_iteration
    loop = fit(run, algorithm, {"policy": Trainee(algorithm.policy, config.optim)}, updates, config.checkpoint)
    save_policy(algorithm.policy, policy, run.out)
    return {"updates": updates, "prompts": len(algorithm.prompts), "skipped_updates": loop.skipped}
