"""What scores a completion: a reward model, or the prompt's own verifier.

Axes: ``C`` completions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.packing import Group
from data.records import Prompt
from data.verifiers import verify
from models.ensembles import Ensemble, aggregate_scores, load_reward
from models.heads import ScalarModel
from models.rendering import text_of


def score_groups(model: ScalarModel | Ensemble, groups: Sequence[Group], max_tokens: int) -> list[list[float]]:
    """Normalised reward of every completion of every group, in their order."""
    return _rows(model.score(groups, max_tokens), groups)


def _rows(score_C: Tensor, groups: Sequence[Group]) -> list[list[float]]:
    return [part.tolist() for part in score_C.cpu().split([len(group.completions) for group in groups])]


@dataclass
class Scored:
    """Rewards of a batch of completions, how many could not be scored, and what else the scorer has to report."""

    reward_PG: list[list[float]]
    failures: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


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
    """The trained reward model's normalised score. One that is not finite becomes the lowest of the batch and is counted.

    Of an ensemble the disagreement is reported: the standard deviation of the members' rewards, mean over completions.
    """

    model: ScalarModel | Ensemble
    max_tokens: int = field(default=8192)

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        rows, metrics = self._scores(groups)
        finite = [s for row in rows for s in row if math.isfinite(s)]
        failures = sum(map(len, rows)) - len(finite)
        if not finite:
            raise ValueError(
                "the reward model scores no completion with a finite number: it was trained with too high a learning rate, or damaged"
            )
        return Scored([[s if math.isfinite(s) else min(finite) for s in row] for row in rows], failures, metrics)

    def _scores(self, groups: Sequence[Group]) -> tuple[list[list[float]], dict[str, float]]:
        if not isinstance(self.model, Ensemble):
            return score_groups(self.model, groups, self.max_tokens), {}
        score_MC = self.model.member_scores(groups, self.max_tokens)
        rows = _rows(aggregate_scores(score_MC, self.model.rule, self.model.coefficient), groups)
        return rows, {"train/reward_disagreement": float(score_MC.std(0, correction=0).mean())}


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
    return RewardModelReward(load_reward(reward, device))
