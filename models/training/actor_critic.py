"""Stage entry: actor-critic.

Axes: ``C`` completions, ``T`` tokens.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from models.advantages import explained_variance, reward_to_go
from models.configs.reinforce import ActorCriticConfig
from models.heads import ScalarModel
from models.loading import load_reference, save_policy
from models.losses.policy_gradient import reinforce_loss, value_loss
from models.losses.sums import Sums
from models.run import Run
from models.training.core import fit
from models.training.critic import new_critic
from models.training.optimiser import Trainee
from models.training.reinforce import priced_rewards
from models.training.rollout import Batch, OnPolicy, Rollout, check_finite, entropy_sums


class ActorCritic(OnPolicy):
    """The actor weighs each token by G_t - V_t, the critic regresses V_t on G_t."""

    config: ActorCriticConfig
    reference: Any = None
    critic: ScalarModel

    def prepare(self, rollout: Rollout) -> None:
        mask_CT = rollout.tensors["mask"]
        reward_CT = priced_rewards(self, rollout)
        value_CT = self.per_token(rollout, self.critic.before_tokens)
        advantage_CT, return_CT = reward_to_go(reward_CT, value_CT, mask_CT, self.config.discount)
        rollout.tensors |= {"old_value": value_CT, "return": return_CT, "advantage": advantage_CT}
        check_finite(rollout)
        rollout.metrics["ppo/explained_variance"] = explained_variance(value_CT, return_CT, mask_CT)

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        """Mean over completions of -sum_t A_t log pi_t, plus value_coefficient times the mean over tokens of 1/2 (V - G)^2."""
        mask_CT, advantage_CT, old_value_CT, return_CT = self.pick(batch, "mask", "advantage", "old_value", "return")
        logp_CT, entropy_CT = self.current(batch)
        policy, sums = reinforce_loss(logp_CT, advantage_CT, mask_CT, batch.sequences)
        value_CT = batch.packed.unflatten(self.critic.before_tokens(batch.packed), mask_CT.shape[1])
        critic_CT, value_sums = value_loss(value_CT, old_value_CT, return_CT, mask_CT, clip=0.0)
        total = policy + self.config.value_coefficient * critic_CT.sum() / batch.tokens
        return total, sums | value_sums | entropy_sums(entropy_CT, mask_CT)


def train(config: ActorCriticConfig, *, policy: Path, data: Path, seed: int, run: Run, reward: Path | None = None) -> dict[str, Any]:
    """Optimise ``policy`` on the prompts of ``data``, and its critic with it. The reference is the policy as it comes in."""
    algorithm = ActorCritic.load(config, policy=policy, data=data, reward=reward, seed=seed, run=run)
    algorithm.reference = load_reference(algorithm.policy, policy, run.device) if config.kl_coefficient else None
    algorithm.critic = new_critic(config.reward, config.value_head, reward, policy, seed, run.device)
    trainees = {"policy": Trainee(algorithm.policy, config.optim), "value": Trainee(algorithm.critic, config.value_optim, "ppo")}
    loop = fit(run, algorithm, trainees, config.iterations, config.checkpoint)
    save_policy(algorithm.policy, policy, run.out)
    return {"updates": config.iterations, "prompts": len(algorithm.prompts), "skipped_updates": loop.skipped}
