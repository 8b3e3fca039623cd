"""Stage entry: group-relative policy optimisation and its variants.

Axes: ``P`` prompts, ``G`` samples of each, ``C`` = P x G completions, ``T`` tokens.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.advantages import group_advantages, overlong
from models.configs.grpo import GRPOConfig
from models.loading import load_reference, save_policy
from models.losses.grpo import VARIANTS, Sizes, truncated_importance
from models.losses.kl import KL_ESTIMATORS
from models.losses.sums import Sums, masked
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.order import permutation
from models.training.rollout import Batch, Draw, OnPolicy, Rollout, check_finite, entropy_bonus, entropy_sums


class GRPO(OnPolicy):
    """Advantages from the group's own spread, no critic; the KL to the reference is in the loss or in the reward."""

    config: GRPOConfig
    reference: Any = None

    def collect(self, iteration: int) -> Draw:
        """A round; groups without spread are replaced by further prompts as long as draws are left, and fill up what is missing then.

        Source: Yu et al. 2025 (DAPO), section 3.2.
        """
        drawn, wanted = super().collect(iteration), self.config.prompts_per_iteration
        if not self.config.dynamic_sampling_rounds:
            return drawn
        further = permutation(len(self.prompts), self.seed, "further prompts", iteration)
        for extra in range(self.config.dynamic_sampling_rounds):
            begin, missing = len(drawn.groups) - wanted, wanted - int((~_flat(drawn)).sum())
            if missing <= 0:
                break
            chosen = [further[i % len(further)] for i in range(begin, begin + missing)]
            drawn = drawn + self.draw(chosen, "rollout", iteration, "further", extra)
        kept = drawn.only(sorted(_flat(drawn).long().argsort(stable=True)[:wanted].tolist()))
        kept.metrics["grpo/resampled_prompts"] = len(drawn.groups) - wanted
        return kept

    def prepare(self, rollout: Rollout) -> None:
        config, samples = self.config, self.config.samples_per_prompt
        reward_C = rollout.tensors["score"] - config.overlong_penalty * overlong(
            rollout.tensors["mask"].sum(-1), config.sampling.max_tokens, config.overlong_buffer_tokens
        )
        if config.updates_per_iteration > 1 or self._kl_in("reward"):
            rollout.tensors["old_logp"] = self.sampled_logps(rollout)
        if self.reference is not None:
            rollout.tensors["ref_logp"] = self.per_token(rollout, self.logps(self.reference))
        if self._kl_in("reward"):
            reward_C = reward_C - config.kl_coefficient * self._kl_of_completions(rollout)
        advantage_PG, flat_P = group_advantages(reward_C.view(-1, samples), VARIANTS[config.loss].by_deviation)
        rollout.tensors["advantage"] = advantage_PG.flatten()
        rollout.metrics["grpo/zero_spread_groups"] = float(flat_P.sum())
        check_finite(rollout)

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        """The variant's mean of {surrogate * importance + beta KL} over tokens, less entropy_coefficient times the mean entropy.

        For grpo: 1/C sum_i 1/len(o_i) sum_t { -min[rho A, clip(rho) A] + beta k3 }.

        Source: Shao et al. 2024 (DeepSeekMath), equation 3; models/losses/grpo.py.
        """
        variant = VARIANTS[self.config.loss]
        advantage_C, mask_CT = self.pick(batch, "advantage", "mask")
        logp_CT, entropy_CT = self.current(batch)
        old_logp_CT = self.old_logps(batch, logp_CT)
        advantage_CT = advantage_C[:, None].expand_as(logp_CT)
        loss_CT, sums = variant.surrogate(logp_CT, old_logp_CT, advantage_CT, mask_CT, self.config.clip, self.config.clip_high)
        if self.config.importance_cap:
            sampler_logp_CT = self.pick(batch, "sampler_logp")[0]
            weight_CT, more = truncated_importance(old_logp_CT, sampler_logp_CT, mask_CT, self.config.importance_cap)
            loss_CT, sums = loss_CT * weight_CT, sums | more
        if self._kl_in("loss"):
            kl_CT, more = self._kl(logp_CT, self.pick(batch, "ref_logp")[0], mask_CT)
            loss_CT, sums = loss_CT + self.config.kl_coefficient * kl_CT, sums | more
        loss = variant.reduce(loss_CT, mask_CT, self._sizes(batch))
        sums["train/loss"] = (loss.detach(), len(advantage_C) / batch.sequences)
        bonus = entropy_bonus(entropy_CT, mask_CT, self.config.entropy_coefficient, batch.tokens)
        return loss - bonus, sums | entropy_sums(entropy_CT, mask_CT)

    def _kl_in(self, place: str) -> bool:
        return self.reference is not None and self.config.kl_in == place

    def _kl(self, logp_CT: Tensor, ref_logp_CT: Tensor, mask_CT: Tensor) -> tuple[Tensor, Sums]:
        kl_CT = torch.where(mask_CT, KL_ESTIMATORS[self.config.kl_estimator](logp_CT, ref_logp_CT), 0.0)
        per_sequence_C = torch.where(mask_CT, logp_CT - ref_logp_CT, 0.0).sum(-1).detach()
        return kl_CT, {"train/kl_token_nats": masked(kl_CT, mask_CT), "train/kl_nats": (per_sequence_C.sum(), float(len(per_sequence_C)))}

    def _kl_of_completions(self, rollout: Rollout) -> Tensor:
        """The estimate summed over each completion, at the policy that sampled: ``[C]``."""
        logp_CT, ref_logp_CT = rollout.tensors["old_logp"], rollout.tensors["ref_logp"]
        rollout.metrics["train/kl_nats"] = float((logp_CT - ref_logp_CT).sum(-1).mean())
        return torch.where(rollout.tensors["mask"], KL_ESTIMATORS[self.config.kl_estimator](logp_CT, ref_logp_CT), 0.0).sum(-1)

    def _sizes(self, batch: Batch) -> Sizes:
        assert self.rollout is not None
        round_tokens = int(self.rollout.tensors["mask"].sum()) / self.config.minibatches
        return Sizes(batch.sequences, batch.tokens, round_tokens, self.config.sampling.max_tokens)


def _flat(drawn: Draw) -> Tensor:
    """True where all samples of a prompt score the same."""
    return group_advantages(drawn.scores_PG())[1]


def train(config: GRPOConfig, *, policy: Path, data: Path, seed: int, run: Run, reward: Path | None = None) -> dict[str, Any]:
    """Optimise ``policy`` on the prompts of ``data``. The reference is the policy as it comes in."""
    algorithm = GRPO.load(config, policy=policy, data=data, reward=reward, seed=seed, run=run)
    algorithm.reference = load_reference(algorithm.policy, policy, run.device) if config.kl_coefficient else None
    updates = config.iterations * config.updates_per_iteration
    loop = fit(run, algorithm, {"policy": Trainee(algorithm.policy, config.optim)}, updates, config.checkpoint)
    save_policy(algorithm.policy, policy, run.out)
    return {"updates": updates, "prompts": len(algorithm.prompts), "skipped_updates": loop.skipped}
