"""Stage entry: proximal policy optimisation with a critic.

Axes: ``C`` completions, ``T`` tokens.
"""

import math
from pathlib import Path
from typing import Any

from torch import Tensor

from models.advantages import explained_variance, gae, scale_rewards, token_rewards, whiten
from models.configs.ppo import PPOConfig
from models.heads import ScalarModel
from models.loading import load_reference, save_policy
from models.losses.policy_gradient import clipped_surrogate, value_loss
from models.losses.sums import Sums
from models.run import Run
from models.training.core import fit
from models.training.critic import new_critic
from models.training.kl_control import KLControl
from models.training.optimiser import Trainee
from models.training.ptx import DemonstrationBatch, Demonstrations, read_demonstrations
from models.training.rollout import Batch, OnPolicy, Rollout, check_finite, entropy_bonus, entropy_sums


class PPO(OnPolicy):
    """Per-token rewards with the KL inside, values from a critic, generalised advantages, clipped ratios and values."""

    config: PPOConfig
    reference: Any
    critic: ScalarModel

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.kl = KLControl(self.config.kl_coefficient, self.config.kl_target_nats, self.config.kl_rate)

    def prepare(self, rollout: Rollout) -> None:
        mask_CT = rollout.tensors["mask"]
        old_logp_CT = self.sampled_logps(rollout)
        ref_logp_CT = self.per_token(rollout, self.logps(self.reference))
        value_CT = self.per_token(rollout, self.critic.before_tokens)
        reward_CT = self._rewards(rollout, old_logp_CT, ref_logp_CT)
        advantage_CT, return_CT = gae(reward_CT, value_CT, mask_CT, discount=self.config.discount, decay=self.config.gae_decay)
        rollout.tensors |= {"old_logp": old_logp_CT, "old_value": value_CT, "return": return_CT, "advantage": whiten(advantage_CT, mask_CT)}
        check_finite(rollout)
        rollout.metrics["ppo/explained_variance"] = explained_variance(value_CT, return_CT, mask_CT)

    def _rewards(self, rollout: Rollout, logp_CT: Tensor, ref_logp_CT: Tensor) -> Tensor:
        """Rewards of each token at the price that the KL has in this round; the next round's price follows from this one's KL."""
        mask_CT, most = rollout.tensors["mask"], self.config.reward_clip or math.inf
        score_C = rollout.tensors["score"].clamp(-most, most)
        reward_CT = token_rewards(score_C, logp_CT, ref_logp_CT, mask_CT, self.kl.coefficient, self.config.kl_estimator)
        rollout.metrics["train/kl_nats"] = float((logp_CT - ref_logp_CT).sum(-1).mean())
        if self.config.kl_target_nats:
            rollout.metrics["ppo/kl_coefficient"] = self.kl.coefficient
            self.kl.follow(rollout.metrics["train/kl_nats"])
        return scale_rewards(reward_CT, mask_CT) if self.config.whiten_rewards else reward_CT

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        """Mean over tokens of the clipped surrogate + value_coefficient * value loss - entropy_coefficient * entropy."""
        mask_CT, advantage_CT, old_value_CT, return_CT = self.pick(batch, "mask", "advantage", "old_value", "return")
        logp_CT, entropy_CT = self.current(batch)
        policy_CT, sums = clipped_surrogate(logp_CT, self.old_logps(batch, logp_CT), advantage_CT, mask_CT, self.config.clip)
        value_CT = batch.packed.unflatten(self.critic.before_tokens(batch.packed), mask_CT.shape[1])
        critic_CT, value_sums = value_loss(value_CT, old_value_CT, return_CT, mask_CT, self.config.value_clip)
        bonus = entropy_bonus(entropy_CT, mask_CT, self.config.entropy_coefficient, batch.tokens)
        total = (policy_CT.sum() + self.config.value_coefficient * critic_CT.sum()) / batch.tokens - bonus
        sums["train/loss"] = (policy_CT.detach().sum(), mask_CT.sum())
        return total, sums | value_sums | entropy_sums(entropy_CT, mask_CT)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().state()
        return tensors, state | {"kl_coefficient": self.kl.coefficient}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_state(tensors, state)
        self.kl.coefficient = state["kl_coefficient"]


class PPOWithDemonstrations(PPO):
    """PPO-ptx: the micro-batches of an update are PPO's and those of some demonstrations."""

    demonstrations: Demonstrations

    def batches(self, update: int) -> list[Any]:
        return [*super().batches(update), *self.demonstrations.batches(update)]

    def loss(self, batch: Batch | DemonstrationBatch) -> tuple[Tensor, Sums]:
        return self.demonstrations.loss(batch) if isinstance(batch, DemonstrationBatch) else super().loss(batch)


def train(config: PPOConfig, *, policy: Path, data: Path, seed: int, run: Run, reward: Path | None = None) -> dict[str, Any]:
    """Optimise ``policy`` on the prompts of ``data`` against the reward; the critic starts from the reward model.

    The reference for the KL is the policy as it comes in.
    """
    kind = PPOWithDemonstrations if config.ptx_coefficient else PPO
    algorithm = kind.load(config, policy=policy, data=data, reward=reward, seed=seed, run=run)
    if isinstance(algorithm, PPOWithDemonstrations):
        shown = read_demonstrations(config, policy, data, run)
        algorithm.demonstrations = Demonstrations(algorithm.policy, shown, config, algorithm.max_tokens, seed)
    algorithm.reference = load_reference(algorithm.policy, policy, run.device)
    algorithm.critic = new_critic(config.reward, config.value_head, reward, policy, seed, run.device)
    trainees = {"policy": Trainee(algorithm.policy, config.optim), "value": Trainee(algorithm.critic, config.value_optim, "ppo")}
    updates = config.iterations * config.updates_per_iteration
    loop = fit(run, algorithm, trainees, updates, config.checkpoint)
    save_policy(algorithm.policy, policy, run.out)
    return {"updates": updates, "prompts": len(algorithm.prompts), "skipped_updates": loop.skipped}
