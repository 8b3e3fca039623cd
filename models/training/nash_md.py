"""Stage entry: Nash mirror descent by policy gradient.

Axes: ``P`` prompts of a round, ``G`` samples of each, ``C`` = P x G completions, ``T`` tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.packing import Group
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer
from models.advantages import gae, token_rewards
from models.configs.nash_md import NashMDConfig
from models.duels import Duel, duel_function
from models.generation import generate
from models.loading import load_policy, save_policy
from models.lora import add_adapters
from models.losses.policy_gradient import clipped_surrogate
from models.losses.sums import Sums
from models.mixture import GeometricMixture
from models.rendering import eos_ids
from models.rewards import Scored
from models.run import Run
from models.seeds import derive_seed
from models.training.core import fit
from models.training.optimiser import Trainee
from models.training.reference import MovingReference
from models.training.rollout import Batch, OnPolicy, Rollout, check_finite, entropy_sums


class NashMD(OnPolicy):
    """Each completion fights one of the opponent, which samples from the mixture of policy and reference."""

    config: NashMDConfig
    iteration = 0

    def __init__(
        self,
        policy: Any,
        prompts: list[Prompt],
        tokenizer: Any,
        duel: Duel,
        reference: MovingReference,
        eos: list[int],
        config: NashMDConfig,
        seed: int,
        run: Run,
    ):
        super().__init__(policy, prompts, tokenizer, self.fight, eos, config, seed, run)
        self.duel, self.reference = duel, reference

    def batches(self, update: int) -> list[Batch]:
        self.iteration, inner = divmod(update, self.config.updates_per_iteration)
        if inner == 0:
            self.reference.follow(self.iteration)
        return super().batches(update)

    def fight(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        """Probability that each completion is preferred to one that the mixture gives to the same prompt."""
        with self.sampling():
            sampled = generate(
                self.policy,
                [group.prompt for group in groups],
                self.config.sampling,
                samples=self.config.samples_per_prompt,
                eos_ids=self.eos,
                seed=derive_seed(self.seed, "opponent", self.iteration),
                on_step=self.run.stop_if_asked,
                guide=GeometricMixture(self.reference.model, self.config.mixture_share),
            )
        return self.duel(prompts, groups, [Group(g.prompt, [c.tokens for c in row]) for g, row in zip(groups, sampled, strict=True)])

    def prepare(self, rollout: Rollout) -> None:
        """Advantages P - 1/2 at the end of each completion, minus what the rest of it costs in KL.

        Source: Munos et al. 2024, Nash-MD-PG: the gradient of E[P - tau log(pi / mu)], of which each token gets what comes after it.
        """
        mask_CT = rollout.tensors["mask"]
        logp_CT = self.sampled_logps(rollout)
        ref_logp_CT = self.per_token(rollout, self.logps(self.reference.model))
        reward_CT = token_rewards(rollout.tensors["score"] - 0.5, logp_CT, ref_logp_CT, mask_CT, self.config.kl_coefficient)
        to_come_CT, _ = gae(reward_CT, torch.zeros_like(reward_CT), mask_CT, discount=1.0, decay=1.0)
        rollout.tensors |= {"old_logp": logp_CT, "advantage": to_come_CT}
        check_finite(rollout)
        rollout.metrics["train/kl_nats"] = float((logp_CT - ref_logp_CT).sum(-1).mean())

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        """Clipped surrogate, summed over the tokens of a completion and averaged over completions.

        Nothing is divided by lengths: before the first step of a round its gradient is that of the expectation itself.
        """
        mask_CT, advantage_CT = self.pick(batch, "mask", "advantage")
        logp_CT, entropy_CT = self.current(batch)
        loss_CT, sums = clipped_surrogate(logp_CT, self.old_logps(batch, logp_CT), advantage_CT, mask_CT, self.config.clip)
        loss = loss_CT.sum() / batch.sequences
        sums["train/loss"] = (loss_CT.detach().sum(), float(len(loss_CT)))
        return loss, sums | entropy_sums(entropy_CT, mask_CT)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors, state = super().state()
        weights, moves = self.reference.state()
        return tensors | {f"reference/{name}": t for name, t in weights.items()}, {"rollout": state, "reference": moves}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        own = {name: t for name, t in tensors.items() if not name.startswith("reference/")}
        super().load_state(own, state["rollout"])
        weights = {name.removeprefix("reference/"): t for name, t in tensors.items() if name not in own}
        self.reference.load_state(weights, state["reference"])


def train(config: NashMDConfig, *, policy: Path, data: Path, seed: int, run: Run, reward: Path | None = None) -> dict[str, Any]:
    """Optimise ``policy`` on the prompts of ``data``. The reference is the policy as it comes in, and follows it where it is told to."""
    tokenizer = load_tokenizer(policy)
    prompts = read_table(data / "prompts.parquet", Prompt)
    model = load_policy(policy, run.device, trainable=True)
    add_adapters(model, config.lora, seed)
    duel = duel_function(config.reward, tokenizer, reward, run.device)
    reference = MovingReference(load_policy(policy, run.device), model, config.reference_sync_every, config.reference_sync_share)
    algorithm = NashMD(model, prompts, tokenizer, duel, reference, eos_ids(policy, tokenizer), config, seed, run)
    updates = config.iterations * config.updates_per_iteration
    loop = fit(run, algorithm, {"policy": Trainee(model, config.optim)}, updates, config.checkpoint)
    save_policy(model, policy, run.out)
    return {"updates": updates, "prompts": len(prompts), "skipped_updates": loop.skipped}
