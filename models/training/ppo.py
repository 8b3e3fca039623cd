"""Stage entry: proximal policy optimisation with a critic.

Axes: ``C`` completions, ``T`` tokens.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer
from models.advantages import gae, token_rewards, whiten
from models.configs.ppo import PPOConfig
from models.heads import ScalarModel, load_scalar, new_scalar
from models.loading import load_policy, load_reference, save_policy
from models.lora import add_adapters
from models.losses.policy_gradient import clipped_surrogate, value_loss
from models.losses.sums import Sums
from models.rendering import eos_ids
from models.rewards import reward_function
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.rollout import Batch, OnPolicy, Rollout, check_finite, entropy_sums


class PPO(OnPolicy):
    """Per-token rewards with the KL inside, values from a critic, generalised advantages, clipped ratios and values."""

    config: PPOConfig
    reference: Any
    critic: ScalarModel

    def prepare(self, rollout: Rollout) -> None:
        mask_CT, score_C = rollout.tensors["mask"], rollout.tensors["score"]
        old_logp_CT = self.per_token(rollout, self.logps(self.policy))
        ref_logp_CT = self.per_token(rollout, self.logps(self.reference))
        value_CT = self.per_token(rollout, self.critic.before_tokens)
        reward_CT = token_rewards(score_C, old_logp_CT, ref_logp_CT, mask_CT, self.config.kl_coefficient)
        advantage_CT, return_CT = gae(reward_CT, value_CT, mask_CT, discount=self.config.discount, decay=self.config.gae_decay)
        rollout.tensors |= {"old_logp": old_logp_CT, "old_value": value_CT, "return": return_CT, "advantage": whiten(advantage_CT, mask_CT)}
        check_finite(rollout)
        error, spread = (return_CT - value_CT)[mask_CT].var(correction=0), return_CT[mask_CT].var(correction=0)
        rollout.metrics["train/kl_nats"] = float((old_logp_CT - ref_logp_CT).sum(-1).mean())
        rollout.metrics["ppo/explained_variance"] = float(1 - error / spread.clamp_min(1e-8))

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        """Mean over completion tokens of the clipped surrogate plus value_coefficient times the clipped value loss."""
        mask_CT, advantage_CT, old_logp_CT, old_value_CT, return_CT = self.pick(
            batch, "mask", "advantage", "old_logp", "old_value", "return"
        )
        logp_CT, entropy_CT = self.current(batch)
        policy_CT, sums = clipped_surrogate(logp_CT, old_logp_CT, advantage_CT, mask_CT, self.config.clip)
        value_CT = batch.packed.unflatten(self.critic.before_tokens(batch.packed), mask_CT.shape[1])
        critic_CT, value_sums = value_loss(value_CT, old_value_CT, return_CT, mask_CT, self.config.value_clip)
        total = (policy_CT.sum() + self.config.value_coefficient * critic_CT.sum()) / batch.tokens
        sums["train/loss"] = (policy_CT.detach().sum(), mask_CT.sum())
        return total, sums | value_sums | entropy_sums(entropy_CT, mask_CT)


def train(config: PPOConfig, *, policy: Path, data: Path, reward: Path, seed: int, run: Run) -> dict[str, Any]:
    """Optimise ``policy`` on the prompts of ``data`` against the reward; the critic starts from the reward model.

    The reference for the KL is the policy as it comes in.
    """
    tokenizer = load_tokenizer(policy)
    prompts = read_table(data / "prompts.parquet", Prompt)
    model = load_policy(policy, run.device, trainable=True)
    add_adapters(model, config.lora, seed)
    score = reward_function(config.reward, tokenizer, reward, run.device)
    algorithm = PPO(model, prompts, tokenizer, score, eos_ids(policy, tokenizer), config, seed, run)
    algorithm.reference = load_reference(model, policy, run.device)
    algorithm.critic = _critic(config, reward, policy, seed, run.device)
    trainees = {"policy": Trainee(model, config.optim), "value": Trainee(algorithm.critic, config.value_optim, "ppo")}
    updates = config.iterations * config.updates_per_iteration
    loop = fit(run, algorithm, trainees, updates, config.checkpoint)
    save_policy(model, policy, run.out)
    return {"updates": updates, "prompts": len(prompts), "skipped_updates": loop.skipped}


def _critic(config: PPOConfig, reward: Path, policy: Path, seed: int, device: torch.device) -> ScalarModel:
    """The reward model's backbone where that is the reward, else the policy's; under config.value_head.

    A reward model's head is trained at end-of-turn tokens only: at the tokens before, it reads values several deviations off, and the
    first rounds would go into unlearning them. A head of zeros starts at 0, the mean of normalised rewards.
    """
    if config.reward == "verifier":
        return new_scalar(policy, seed, device)
    critic = load_scalar(reward, device, trainable=True)
    with torch.no_grad():
        if config.value_head == "zero":
            critic.head.weight.zero_()
            critic.head.bias.zero_()
        else:
            critic.head.weight.div_(critic.rule.deviation)
            critic.head.bias.sub_(critic.rule.mean).div_(critic.rule.deviation)
    return critic
