"""On-policy rounds: sample, score, keep as a buffer that survives a kill, cut into micro-batches.

Axes: ``P`` prompts of a round, ``G`` samples of each, ``C`` = P x G completions, ``T`` tokens of the longest one, ``S`` scored tokens.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from data.packing import Group, Packed, pack, split_by_tokens
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models.configs.policy_gradient import PolicyGradientConfig
from models.generation import Completion, generate
from models.loading import load_policy
from models.logprobs import token_logps
from models.lora import add_adapters
from models.losses.sums import Sums, masked
from models.rendering import eos_ids
from models.rewards import RewardFunction, Scored, reward_of
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


@dataclass
class Draw:
    """Groups as they were sampled and scored, before they are a rollout."""

    groups: list[Group]
    completions: list[list[Completion]]
    scored: Scored
    metrics: dict[str, float] = field(default_factory=dict)

    def scores_PG(self) -> Tensor:
        """Scores, float32."""
        return torch.tensor(self.scored.reward_PG, dtype=torch.float32)

    def finished_PG(self) -> Tensor:
        """True where a completion ended by itself."""
        return torch.tensor([[c.finished for c in row] for row in self.completions])

    def only(self, kept: Sequence[int]) -> "Draw":
        """Some of the groups. Failures stay counted: they were this draw's."""
        terms = {name: [rows[p] for p in kept] for name, rows in self.scored.terms.items()}
        scored = Scored([self.scored.reward_PG[p] for p in kept], self.scored.failures, terms, self.scored.metrics)
        return Draw([self.groups[p] for p in kept], [self.completions[p] for p in kept], scored)

    def __add__(self, other: "Draw") -> "Draw":
        terms = {name: rows + other.scored.terms[name] for name, rows in self.scored.terms.items()}
        failures = self.scored.failures + other.scored.failures
        scored = Scored(self.scored.reward_PG + other.scored.reward_PG, failures, terms, self.scored.metrics)
        return Draw(self.groups + other.groups, self.completions + other.completions, scored)


@dataclass(frozen=True)
class Batch:
    """A micro-batch of a round; ``tokens`` and ``sequences`` are those of the whole update."""

    packed: Packed
    rows_C: Tensor
    tokens: int
    sequences: int


class OnPolicy(Algorithm):
    """Rounds of rollouts and the updates on them. A method brings ``prepare`` (advantages) and ``loss``."""

    sampling_s = 0.0

    def __init__(
        self,
        policy: Any,
        prompts: list[Prompt],
        tokenizer: Any,
        reward: RewardFunction,
        eos: list[int],
        config: PolicyGradientConfig,
        seed: int,
        run: Run,
    ):
        self.policy, self.prompts, self.reward, self.eos = policy, prompts, reward, eos
        self.config, self.seed, self.run = config, seed, run
        self.prompt_ids = [render_prompt(tokenizer, prompt.messages) for prompt in prompts]
        self.max_tokens = int(config.micro_batch_tokens * run.micro_batch_scale)
        self.rollout: Rollout | None = None

    @classmethod
    def load(cls, config: Any, *, policy: Path, data: Path, reward: Path | None, seed: int, run: Run) -> Self:
        """The algorithm over a policy folder, to be trained, the prompts of ``data`` and the reward that the configuration names."""
        tokenizer = load_tokenizer(policy)
        prompts = read_table(data / "prompts.parquet", Prompt)
        model = load_policy(policy, run.device, trainable=True)
        add_adapters(model, config.lora, seed)
        score = reward_of(config, tokenizer, policy, reward, run.device)
        return cls(model, prompts, tokenizer, score, eos_ids(policy, tokenizer), config, seed, run)

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

    def collect(self, iteration: int) -> Draw:
        """The completions of a round, sampled and scored."""
        chosen = batch_indices(len(self.prompts), self.config.prompts_per_iteration, iteration, self.seed, "prompts")
        return self.draw(chosen, "rollout", iteration)

    def draw(self, chosen: Sequence[int], *seed_parts: object) -> Draw:
        """Completions of the chosen prompts and their scores; the seed parts alone decide the sampling noise."""
        with self.sampling():
            sampled = generate(
                self.policy,
                [self.prompt_ids[i] for i in chosen],
                self.config.sampling,
                samples=self.config.samples_per_prompt,
                eos_ids=self.eos,
                seed=derive_seed(self.seed, *seed_parts),
                on_step=self.run.stop_if_asked,
            )
        self.run.failpoint("rollout")
        groups = [Group(self.prompt_ids[i], [c.tokens for c in row]) for i, row in zip(chosen, sampled, strict=True)]
        return Draw(groups, sampled, self.reward([self.prompts[i] for i in chosen], groups))

    def _roll_out(self, iteration: int) -> Rollout:
        drawn = self.collect(iteration)
        rollout = Rollout(drawn.groups)
        score_C, finished_C = drawn.scores_PG().flatten(), drawn.finished_PG().flatten()
        rollout.tensors["score"] = score_C - self.config.missing_eos_penalty * (~finished_C)
        lengths = [len(c) for group in rollout.groups for c in group.completions]
        rollout.tensors["mask"] = torch.arange(rollout.length) < torch.tensor(lengths)[:, None]
        sampler_logps = [torch.tensor(c.logps) for row in drawn.completions for c in row]
        rollout.tensors["sampler_logp"] = torch.nn.utils.rnn.pad_sequence(sampler_logps, batch_first=True)
        rollout.metrics = {
            "train/reward": float(score_C.mean()),
            "train/reward_failures": drawn.scored.failures,
            "train/completion_tokens": sum(lengths) / len(lengths),
            "train/finished": float(finished_C.float().mean()),
        }
        rollout.metrics |= {f"reward/{name}": float(torch.tensor(score_PG).mean()) for name, score_PG in drawn.scored.terms.items()}
        rollout.metrics |= drawn.scored.metrics | drawn.metrics
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

    def sampled_logps(self, rollout: Rollout) -> Tensor:
        """Log-probabilities of a round's tokens at the policy that sampled them: ``[C, T]``.

        Where a round is one update they are the sampler's: the update's ratios are 1 whatever they are, and a pass over the round is saved.
        Further updates compare with the training pass, so that its rounding falls out of their ratios.
        """
        if self.config.updates_per_iteration == 1:
            return rollout.tensors["sampler_logp"].clone()  # kept beside it in checkpoints, whose tensors share no memory
        return self.per_token(rollout, self.logps(self.policy))

    def old_logps(self, batch: Batch, logp_CT: Tensor) -> Tensor:
        """What the ratios of an update compare with: ``old_logp`` of the rollout, and in a round's only update the policy as it is."""
        return logp_CT.detach() if self.config.updates_per_iteration == 1 else self.pick(batch, "old_logp")[0]

    def pick(self, batch: Batch, *names: str) -> list[Tensor]:
        """Rows of the rollout's tensors that belong to a micro-batch."""
        assert self.rollout is not None
        return [self.rollout.tensors[name][batch.rows_C].to(self.policy.device) for name in names]

    def current(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Log-probabilities now and entropies, both differentiable: ``[C, T]`` each."""
        assert self.rollout is not None
        logp_S, entropy_S = token_logps(self.policy, batch.packed, self.config.sampling.temperature)
        length = self.rollout.length
        return batch.packed.unflatten(logp_S, length), batch.packed.unflatten(entropy_S, length)

    def extra_metrics(self, update: int) -> dict[str, float]:
        assert self.rollout is not None
        return self.rollout.metrics if update % self.config.updates_per_iteration == 0 else {}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self.rollout is None:
            return {}, {}
        groups = [{"prompt": list(g.prompt), "completions": [list(c) for c in g.completions]} for g in self.rollout.groups]
        return dict(self.rollout.tensors), {"groups": groups, "metrics": self.rollout.metrics}

    def load_state(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        if "groups" in state:
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
    return {"train/entropy_nats": masked(entropy_CT, mask_CT)}


def entropy_bonus(entropy_CT: Tensor, mask_CT: Tensor, coefficient: float, tokens: int) -> Tensor | float:
    """coefficient times the mean entropy of the update's tokens; where that is 0 the entropy is not differentiated at all."""
    return coefficient * torch.where(mask_CT, entropy_CT, 0.0).sum() / tokens if coefficient else 0.0
