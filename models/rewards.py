"""What scores a completion: a reward model, or the prompt's own verifier.

Axes: ``C`` completions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from data.packing import Group, pack, split_by_tokens
from data.records import Prompt
from data.verifiers import verify
from models.heads import ScalarModel, load_scalar
from models.rendering import text_of


@torch.no_grad()
def score_groups(model: ScalarModel, groups: Sequence[Group], max_tokens: int) -> list[list[float]]:
    """Normalised reward of every completion of every group, in their order."""
    scores: list[float] = []
    for part in split_by_tokens(groups, max_tokens):
        scores += model.reward(pack(part).to(model.head.weight.device)).tolist()
    rows, begin = [], 0
    for group in groups:
        rows.append(scores[begin : begin + len(group.completions)])
        begin += len(group.completions)
    return rows


@dataclass
class Scored:
    """Rewards of a batch of completions, and how many could not be scored."""

    reward_PG: list[list[float]]
    failures: int = 0


Reward = Callable[[Sequence[Prompt], Sequence[Group]], Scored]


@dataclass
class VerifierReward:
    """The verifier's score in [0, 1]. One that raises gives 0 and is counted."""

    tokenizer: PreTrainedTokenizerBase

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        failures = 0
        rows = []
        for prompt, group in zip(prompts, groups, strict=True):
            verdicts = [verify(prompt, text_of(self.tokenizer, c)) for c in group.completions]
            failures += sum(v.error is not None for v in verdicts)
            rows.append([v.score for v in verdicts])
        return Scored(rows, failures)


@dataclass
class RewardModelReward:
    """The trained reward model's normalised score. One that is not finite becomes the lowest of the batch and is counted."""

    model: ScalarModel
    max_tokens: int = field(default=8192)

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        rows = score_groups(self.model, groups, self.max_tokens)
        finite = [s for row in rows for s in row if math.isfinite(s)]
        failures = sum(map(len, rows)) - len(finite)
        if not finite:
            raise ValueError(
                "the reward model scores no completion with a finite number: it was trained with too high a learning rate, or damaged"
            )
        return Scored([[s if math.isfinite(s) else min(finite) for s in row] for row in rows], failures)


def reward_function(
    source: str, tokenizer: PreTrainedTokenizerBase, reward: Path | None, device: torch.device
) -> VerifierReward | RewardModelReward:
    """The reward that a configuration names.

    Raises:
        ValueError: it names the reward model and there is none.
    """
    if source == "verifier":
        return VerifierReward(tokenizer)
    if reward is None:
        raise ValueError("reward = reward_model needs the artifact of a reward_model stage; without one use reward = verifier")
    return RewardModelReward(load_scalar(reward, device))
