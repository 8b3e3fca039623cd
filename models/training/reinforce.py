"""Stage entry: REINFORCE with a baseline.

Axes: ``P`` prompts, ``G`` samples of each, ``C`` = P x G completions, ``T`` tokens.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from models.advantages import BASELINES, MovingAverage, token_rewards
from models.configs.reinforce import ReinforceConfig
from models.loading import load_reference, save_policy
from models.losses.policy_gradient import reinforce_loss
from models.losses.sums import Sums
from models.run import Run
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.rollout import Batch, OnPolicy, Rollout, check_finite, entropy_sums


class Reinforce(OnPolicy):
    """-(R - b) sum_t log pi with R = score - beta KL(k1), one number a completion."""

    config: ReinforceConfig
    reference: Any = None

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.average = MovingAverage(self.config.baseline_decay)

    def prepare(self, rollout: Rollout) -> None:
        reward_C = priced_rewards(self, rollout).sum(-1)
        advantage_PG = BASELINES[self.config.baseline](reward_C.view(-1, self.config.samples_per_prompt), self.average)
        rollout.tensors["advantage"] = advantage_PG.flatten()
        rollout.metrics["reinforce/reward"] = float(reward_C.mean())
        rollout.metrics["reinforce/moving_average"] = self.average.value
        rollout.metrics["reinforce/advantage_deviation"] = float(advantage_PG.std(correction=0))
        self.average.add(float(reward_C.mean()))  # after its use: a baseline may not know the samples it is subtracted from
        check_finite(rollout)

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        """Mean over completions of -A sum_t log pi."""
        mask_CT, advantage_C = self.pick(batch, "mask", "advantage")
        logp_CT, entropy_CT = self.current(batch)
        loss, sums = reinforce_loss(logp_CT, advantage_C[:, None].expand_as(logp_CT), mask_CT, batch.sequences)
        return loss, sums | entropy_sums(entropy_CT, mask_CT)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().state()
        return tensors, state | {"average": [self.average.total, self.average.weight]}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        super().load_state(tensors, state)
        self.average.total, self.average.weight = state["average"]


def priced_rewards(algorithm: Any, rollout: Rollout) -> Tensor:
    """Rewards of each token ``[C, T]``, the KL to the reference inside where there is one; the KL is reported."""
    mask_CT, score_C = rollout.tensors["mask"], rollout.tensors["score"]
    logp_CT = ref_logp_CT = rollout.tensors["sampler_logp"]
    if algorithm.reference is not None:
        logp_CT = algorithm.sampled_logps(rollout)
        ref_logp_CT = algorithm.per_token(rollout, algorithm.logps(algorithm.reference))
        rollout.metrics["train/kl_nats"] = float((logp_CT - ref_logp_CT).sum(-1).mean())
    return token_rewards(score_C, logp_CT, ref_logp_CT, mask_CT, algorithm.config.kl_coefficient)


def train(config: ReinforceConfig, *, policy: Path, data: Path, seed: int, run: Run, reward: Path | None = None) -> dict[str, Any]:
    """Optimise ``policy`` on the prompts of ``data``. The reference is the policy as it comes in."""
    algorithm = Reinforce.load(config, policy=policy, data=data, reward=reward, seed=seed, run=run)
    algorithm.reference = load_reference(algorithm.policy, policy, run.device) if config.kl_coefficient else None
    loop = fit(run, algorithm, {"policy": Trainee(algorithm.policy, config.optim)}, config.iterations, config.checkpoint)
    save_policy(algorithm.policy, policy, run.out)
    return {"updates": config.iterations, "prompts": len(algorithm.prompts), "skipped_updates": loop.skipped}
