"""On-policy rounds: sample, score, keep as a buffer that survives a kill, cut into micro-batches.

Axes: ``P`` prompts of a round, ``G`` samples of each, ``C`` = P x G completions, ``T`` tokens of the longest one, ``S`` scored tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from data.packing import Group, Packed, pack, split_by_tokens
from data.records import Prompt
from data.templates import render_prompt
from models.configs.policy_gradient import OnPolicyConfig
from models.generation import generate
from models.logprobs import token_logps
from models.losses.sums import Sums
from models.rewards import Reward
from models.run import Run
from models.seeds import derive_seed
from models.training.core import Algorithm
from models.training.order import batch_indices, permutation


@dataclass
class Rollout:
    """One round of completions with what the update needs to know of each."""

    groups: list[Group]
    tensors: dict[str, Tensor] = field(default_factory=dict)  # [C] or [C, T]
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def length(self) -> int:
        """``T``."""
        return max(len(c) for group in self.groups for c in group.completions)

    def parts(self, chosen: Sequence[int], max_tokens: int) -> Iterator[tuple[list[Group], Tensor]]:
        """Groups in micro-batches, each with the rows ``C`` of its completions."""
        samples = len(self.groups[0].completions)
        begin = 0
        for part in split_by_tokens([self.groups[p] for p in chosen], max_tokens):
            members = chosen[begin : begin + len(part)]
            begin += len(part)
            yield part, torch.tensor([p * samples + g for p in members for g in range(samples)])


@dataclass(frozen=True)
class Batch:
    """A micro-batch of a round; ``tokens`` and ``sequences`` are those of the whole update."""

    packed: Packed
    rows_C: Tensor
    tokens: int
    sequences: int


class OnPolicy(Algorithm):
    """Rounds of rollouts and the updates on them. A method brings ``prepare`` (advantages) and ``loss``."""

    def __init__(
        self,
        policy: Any,
        prompts: list[Prompt],
        tokenizer: Any,
        reward: Reward,
        eos: list[int],
        config: OnPolicyConfig,
        seed: int,
        run: Run,
    ):
        self.policy, self.prompts, self.reward, self.eos = policy, prompts, reward, eos
        self.config, self.seed, self.run = config, seed, run
        self.prompt_ids = [render_prompt(tokenizer, prompt.messages) for prompt in prompts]
        self.max_tokens = int(config.micro_batch_tokens * run.micro_batch_scale)
        self.rollout: Rollout | None = None

    def prepare(self, rollout: Rollout) -> None:
        """Add what the loss reads to ``rollout.tensors``."""
        raise AssertionError("an on-policy method must prepare its rollout")

    def batches(self, update: int) -> list[Batch]:
        iteration, inner = divmod(update, self.config.updates_per_iteration)
        if inner == 0:
            self.rollout = self._roll_out(iteration)
        assert self.rollout is not None
        epoch, part = divmod(inner, self.config.minibatches)
        order = permutation(len(self.rollout.groups), self.seed, "minibatch", iteration, epoch)
        size = len(order) // self.config.minibatches
        return self._cut(order[part * size : (part + 1) * size])

    def _cut(self, chosen: Sequence[int]) -> list[Batch]:
        """The completions of these prompts of the round as the micro-batches of one update."""
        assert self.rollout is not None
        cut = list(self.rollout.parts(chosen, self.max_tokens))
        tokens = sum(len(c) for groups, _ in cut for g in groups for c in g.completions)
        sequences = sum(len(rows) for _, rows in cut)
        return [Batch(pack(groups).to(self.policy.device), rows, tokens, sequences) for groups, rows in cut]

    def _roll_out(self, iteration: int) -> Rollout:
        config = self.config
        chosen = batch_indices(len(self.prompts), config.prompts_per_iteration, iteration, self.seed, "prompts")
        sampled = generate(
            self.policy,
            [self.prompt_ids[i] for i in chosen],
            config.sampling,
            samples=config.samples_per_prompt,
            eos_ids=self.eos,
            seed=derive_seed(self.seed, "rollout", iteration),
            on_step=self.run.stop_if_asked,
        )
        self.run.failpoint("rollout")
        rollout = Rollout([Group(self.prompt_ids[i], [c.tokens for c in row]) for i, row in zip(chosen, sampled, strict=True)])
        finished_C = torch.tensor([c.finished for row in sampled for c in row])
        scored = self.reward([self.prompts[i] for i in chosen], rollout.groups)
        score_C = torch.tensor([s for row in scored.reward_PG for s in row], dtype=torch.float32)
        rollout.tensors["score"] = score_C - config.missing_eos_penalty * (~finished_C)
        lengths = [len(c) for group in rollout.groups for c in group.completions]
        rollout.tensors["mask"] = torch.arange(rollout.length) < torch.tensor(lengths)[:, None]
        rollout.metrics = {
            "train/reward": float(score_C.mean()),
            "train/reward_failures": scored.failures,
            "train/completion_tokens": sum(lengths) / len(lengths),
            "train/finished": float(finished_C.float().mean()),
        }
        self.prepare(rollout)
        return rollout

    @torch.no_grad()
    def per_token(self, rollout: Rollout, value_of: Any) -> Tensor:
        """``value_of(packed) -> [S]`` of every completion token of a round, as ``[C, T]``."""
        out_CT = torch.zeros(len(rollout.tensors["score"]), rollout.length)
        for groups, rows_C in rollout.parts(range(len(rollout.groups)), 2 * self.max_tokens):
            packed = pack(groups).to(self.policy.device)
            out_CT[rows_C] = packed.unflatten(value_of(packed), rollout.length).cpu()
        return out_CT

    def logps(self, model: Any) -> Any:
        """A ``value_of`` for ``per_token``: log-probabilities at the sampling temperature."""
        return lambda packed: token_logps(model, packed, self.config.sampling.temperature)[0]

    def pick(self, batch: Batch, *names: str) -> list[Tensor]:
        """Rows of the rollout's tensors that belong to a micro-batch."""
        assert self.rollout is not None
        return [self.rollout.tensors[name][batch.rows_C].to(self.policy.device) for name in names]

    def current(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities now, differentiable, and entropies: ``[C, T]`` each."""
        assert self.rollout is not None
        logp_S, entropy_S = token_logps(self.policy, batch.packed, self.config.sampling.temperature)
        length = self.rollout.length
        return batch.packed.unflatten(logp_S, length), batch.packed.unflatten(entropy_S.detach(), length)

    def extra_metrics(self, update: int) -> dict[str, float]:
        assert self.rollout is not None
        return self.rollout.metrics if update % self.config.updates_per_iteration == 0 else {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.rollout is None:
            return {}, {}
        groups = [{"prompt": list(g.prompt), "completions": [list(c) for c in g.completions]} for g in self.rollout.groups]
        return dict(self.rollout.tensors), {"groups": groups, "metrics": self.rollout.metrics}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if state:
            self.rollout = Rollout([Group(g["prompt"], g["completions"]) for g in state["groups"]], tensors, state["metrics"])


def check_finite(rollout: Rollout) -> None:
    """Log-probabilities, values and rewards that are not finite must not reach a loss.

    Raises:
        ValueError: naming which of them is not finite.
    """
    bad = [name for name, t in rollout.tensors.items() if t.is_floating_point() and not math.isfinite(float(t.sum()))]
    if bad:
        raise ValueError(
            f"{', '.join(bad)} of a rollout is not finite: the policy has diverged; lower optim.learning_rate or raise kl_coefficient"
        )


def entropy_sums(entropy_CT: Tensor, mask_CT: Tensor) -> Sums:
    """Mean entropy per completion token, for the report."""
    return {"train/entropy_nats": (torch.where(mask_CT, entropy_CT, 0.0).sum(), mask_CT.sum())}
