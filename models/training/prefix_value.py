"""Stage entry: a value function of prefixes, the expected final reward of the policy's own completions (controlled decoding).

Axes: ``S`` scored tokens, ``C`` completions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.packing import Group, Packed, pack, split_by_tokens
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models.chunks import map_chunks
from models.configs.guidance import PrefixValueConfig
from models.generation import generate
from models.heads import ScalarModel, load_scalar, new_scalar, save_scalar
from models.loading import load_policy
from models.losses.guidance import prefix_value_loss
from models.losses.sums import Sums
from models.rendering import drop_long, eos_ids
from models.rewards import score_groups
from models.run import Run
from models.seeds import derive_seed
from models.training.core import Algorithm, fit
from models.training.optimiser import Trainee
from models.training.order import batch_indices, updates_for


@dataclass(frozen=True)
class Batch:
    """A micro-batch of completions, the reward of each, and the tokens of the whole update."""

    packed: Packed
    reward_C: Tensor
    tokens: int


class PrefixValue(Algorithm):
    """Regress the final reward on every prefix of a completion."""

    def __init__(self, model: ScalarModel, groups: list[Group], reward_C: Tensor, config: PrefixValueConfig, seed: int, run: Run):
        self.model, self.groups, self.reward_C, self.config, self.seed = model, groups, reward_C, config, seed
        self.device = run.device
        self.max_tokens = int(config.micro_batch_tokens * run.micro_batch_scale)

    def batches(self, update: int) -> list[Batch]:
        chosen = batch_indices(len(self.groups), self.config.batch_size, update, self.seed, "prefix_value")
        tokens = sum(len(self.groups[i].completions[0]) for i in chosen)
        batches, begin = [], 0
        for part in split_by_tokens([self.groups[i] for i in chosen], self.max_tokens):
            reward_C = self.reward_C[chosen[begin : begin + len(part)]]
            batches.append(Batch(pack(part).to(self.device), reward_C.to(self.device), tokens))
            begin += len(part)
        return batches

    def loss(self, batch: Batch) -> tuple[Tensor, Sums]:
        return prefix_value_loss(self.model.at_tokens(batch.packed), batch.reward_C[batch.packed.completion_S], batch.tokens)


def train(config: PrefixValueConfig, *, policy: Path, data: Path, reward: Path, seed: int, run: Run) -> dict[str, Any]:
    """Sample completions from ``policy``, score them with the reward model, train a value on the backbone of ``policy``.

    The values are in units of the normalised reward.
    """
    groups = _rollouts(config, policy, data, seed, run)
    scores = score_groups(load_scalar(reward, run.device), groups, int(config.micro_batch_tokens * run.micro_batch_scale))
    reward_C = torch.tensor([score for (score,) in scores])
    if not bool(reward_C.isfinite().all()):
        raise ValueError("the reward model scores completions with numbers that are not finite: train it with a lower learning rate")
    model = new_scalar(policy, seed, run.device)
    updates = updates_for(len(groups), config.batch_size, config.epochs, config.max_updates)
    algorithm = PrefixValue(model, groups, reward_C, config, seed, run)
    loop = fit(run, algorithm, {"model": Trainee(model, config.optim)}, updates, config.checkpoint)
    save_scalar(model, policy, run.out)
    return {"updates": updates, "completions": len(groups), "skipped_updates": loop.skipped}


def _rollouts(config: PrefixValueConfig, policy: Path, data: Path, seed: int, run: Run) -> list[Group]:
    """The policy's own completions, each a group of its own."""
    prompts = read_table(data / "prompts.parquet", Prompt)
    prompts = prompts[: config.prompts] if config.prompts else prompts
    tokenizer, model = load_tokenizer(policy), load_policy(policy, run.device)
    ends = eos_ids(policy, tokenizer)

    def sample(number: int, chunk: Sequence[Prompt]) -> list[Any]:
        ids = [render_prompt(tokenizer, prompt.messages) for prompt in chunk]
        own = derive_seed(seed, "prefix_value", number)
        samples = config.samples_per_prompt
        rows = generate(model, ids, config.sampling, samples=samples, eos_ids=ends, seed=own, on_step=run.stop_if_asked)
        return [[prompt, completion.tokens] for prompt, row in zip(ids, rows, strict=True) for completion in row]

    sampled = map_chunks(run, "rollouts", prompts, config.chunk_prompts, sample)
    groups = [Group(prompt, [completion]) for prompt, completion in sampled]
    return [groups[i] for i in drop_long(groups, config.max_tokens, run)]
