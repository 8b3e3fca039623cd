"""Stage entry: group-relative policy optimisation.

Axes: ``P`` prompts, ``G`` samples of each, ``C`` = P x G completions, ``T`` tokens.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer
from models.advantages import group_advantages
from models.configs.grpo import GRPOConfig
from models.loading import load_policy, load_reference, save_policy
from models.lora import add_adapters
from models.losses.policy_gradient import clipped_surrogate, k3
from models.losses.sums import Sums, masked
from models.rendering import eos_ids
from models.rewards import reward_function
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.rollout import Batch, OnPolicy, Rollout, check_finite, entropy_sums


class GRPO(OnPolicy):
    """Advantages from the group's own spread, no critic; the KL to the reference is in the loss."""

    config: GRPOConfig
    reference: Any = None

    def prepare(self, rollout: Rollout) -> None:
        score_C = rollout.tensors["score"]
        advantage_PG, flat_P = group_advantages(score_C.view(-1, self.config.samples_per_prompt))
        rollout.tensors["advantage"] = advantage_PG.flatten()
        rollout.metrics["grpo/zero_spread_groups"] = float(flat_P.sum())
        if self.config.updates_per_iteration > 1:
            rollout.tensors["old_logp"] = self.per_token(rollout, self.logps(self.policy))
        if self.reference is not None:
            rollout.tensors["ref_logp"] = self.per_token(rollout, self.logps(self.reference))
        check_finite(rollout)

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        """1/C sum_i 1/len(o_i) sum_t { -min[rho A, clip(rho) A] + beta k3 }.

        Source: Shao et al. 2024 (DeepSeekMath), equation 3.
        """
        advantage_C, mask_CT = self.pick(batch, "advantage", "mask")
        logp_CT, entropy_CT = self.current(batch)
        old_logp_CT = self.pick(batch, "old_logp")[0] if self.config.updates_per_iteration > 1 else logp_CT.detach()
        loss_CT, sums = clipped_surrogate(logp_CT, old_logp_CT, advantage_C[:, None].expand_as(logp_CT), mask_CT, self.config.clip)
        if self.reference is not None:
            ref_logp_CT = self.pick(batch, "ref_logp")[0]
            kl_CT = torch.where(mask_CT, k3(logp_CT, ref_logp_CT), 0.0)
            loss_CT = loss_CT + self.config.kl_coefficient * kl_CT
            per_sequence_C = torch.where(mask_CT, logp_CT - ref_logp_CT, 0.0).sum(-1).detach()
            sums |= {"train/kl_token_nats": masked(kl_CT, mask_CT), "train/kl_nats": (per_sequence_C.sum(), float(len(per_sequence_C)))}
        loss = (loss_CT.sum(-1) / mask_CT.sum(-1)).sum() / batch.sequences
        sums["train/loss"] = (loss.detach() * batch.sequences, float(len(advantage_C)))
        return loss, sums | entropy_sums(entropy_CT, mask_CT)


def train(config: GRPOConfig, *, policy: Path, data: Path, seed: int, run: Run, reward: Path | None = None) -> dict[str, Any]:
    """Optimise ``policy`` on the prompts of ``data``. The reference is the policy as it comes in."""
    tokenizer = load_tokenizer(policy)
    prompts = read_table(data / "prompts.parquet", Prompt)
    model = load_policy(policy, run.device, trainable=True)
    add_adapters(model, config.lora, seed)
    score = reward_function(config.reward, tokenizer, reward, run.device)
    algorithm = GRPO(model, prompts, tokenizer, score, eos_ids(policy, tokenizer), config, seed, run)
    algorithm.reference = load_reference(model, policy, run.device) if config.kl_coefficient else None
    updates = config.iterations * config.updates_per_iteration
    loop = fit(run, algorithm, {"policy": Trainee(model, config.optim)}, updates, config.checkpoint)
    save_policy(model, policy, run.out)
    return {"updates": updates, "prompts": len(prompts), "skipped_updates": loop.skipped}
