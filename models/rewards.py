"""What scores completions: a reward model, judges of their texts, a language model's yes or no, and weighted sums of these.

Axes: ``C`` completions.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from data.packing import Group
from data.records import Prompt
from data.verifiers import verify
from models.callables import load_callable
from models.configs.rewards import RewardComponent, ScoredConfig
from models.ensembles import Ensemble, aggregate_scores, load_reward
from models.heads import HeadModel
from models.judges import Judge, format_judge, judge_of, language_consistency
from models.language_judge import LanguageJudge, load_language_judge
from models.rendering import text_of


def score_groups(model: HeadModel | Ensemble, groups: Sequence[Group], max_tokens: int) -> list[list[float]]:
    """Normalised reward of every completion of every group, in their order."""
    return _rows(model.score(groups, max_tokens), groups)


def _rows(score_C: Tensor, groups: Sequence[Group]) -> list[list[float]]:
    return [part.tolist() for part in score_C.cpu().split([len(group.completions) for group in groups])]


@dataclass
class Scored:
    """Rewards of a batch of completions, how many could not be scored, the scores of each term where the reward is a sum, and what else
    the scorer has to report."""

    reward_PG: list[list[float]]
    failures: int = 0
    terms: dict[str, list[list[float]]] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


class RewardFunction(Protocol):
    """Scores the completions of some prompts, given as text records and as tokens."""

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group], /) -> Scored: ...


Reward = Callable[[Sequence[Prompt], Sequence[Group]], Scored]


@dataclass
class TextReward:
    """A judge's score of each text, such as a verifier's in [0, 1]. Where it raises the score is 0, and that is counted."""

    tokenizer: PreTrainedTokenizerBase
    judge: Judge = verify

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        failures = 0
        rows = []
        for prompt, group in zip(prompts, groups, strict=True):
            verdicts = [self.judge(prompt, text_of(self.tokenizer, c)) for c in group.completions]
            failures += sum(v.error is not None for v in verdicts)
            rows.append([v.score for v in verdicts])
        return Scored(rows, failures)


@dataclass
class RewardModelReward:
    """The trained reward model's normalised score. One that is not finite becomes the lowest of the batch and is counted.

    Of an ensemble the disagreement is reported: the standard deviation of the members' rewards, mean over completions.
    """

    model: HeadModel | Ensemble
    max_tokens: int = field(default=8192)

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        rows, metrics = self._scores(groups)
        finite = [s for row in rows for s in row if math.isfinite(s)]
        failures = sum(map(len, rows)) - len(finite)
        if not finite:
            raise ValueError(
                "the reward model scores no completion with a finite number: it was trained with too high a learning rate, or damaged"
            )
        return Scored([[s if math.isfinite(s) else min(finite) for s in row] for row in rows], failures, metrics=metrics)

    def _scores(self, groups: Sequence[Group]) -> tuple[list[list[float]], dict[str, float]]:
        if not isinstance(self.model, Ensemble):
            return score_groups(self.model, groups, self.max_tokens), {}
        score_MC = self.model.member_scores(groups, self.max_tokens)
        rows = _rows(aggregate_scores(score_MC, self.model.rule, self.model.coefficient), groups)
        return rows, {"train/reward_disagreement": float(score_MC.std(0, correction=0).mean())}


@dataclass
class JudgeReward:
    """A language model's P(yes) of each text. One that is too long for it scores 0 and is counted."""

    tokenizer: PreTrainedTokenizerBase
    judge: LanguageJudge

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        rows = [
            self.judge([(prompt.messages, text_of(self.tokenizer, c)) for c in group.completions])
            for prompt, group in zip(prompts, groups, strict=True)
        ]
        failures = sum(score is None for row in rows for score in row)
        return Scored([[score or 0.0 for score in row] for row in rows], failures)


@dataclass
class WeightedReward:
    """sum_k weight_k score_k, each term kept for the report.

    By hand: weights (1, 0.5), scores (1, 0) and (0.4, 0.8) of two completions: (1.2, 0.4).
    """

    terms: dict[str, tuple[float, RewardFunction]]

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group]) -> Scored:
        scored = {name: function(prompts, groups) for name, (_, function) in self.terms.items()}
        weights = {name: weight for name, (weight, _) in self.terms.items()}
        rows = [
            [sum(weights[name] * part.reward_PG[p][g] for name, part in scored.items()) for g in range(len(group.completions))]
            for p, group in enumerate(groups)
        ]
        metrics = {name: value for part in scored.values() for name, value in part.metrics.items()}
        failures = sum(part.failures for part in scored.values())
        return Scored(rows, failures, {name: part.reward_PG for name, part in scored.items()}, metrics)


def reward_function(source: str, tokenizer: PreTrainedTokenizerBase, reward: Path | None, device: torch.device) -> RewardFunction:
    """The reward model of an artifact, or the prompts' own verifiers.

    Raises:
        ValueError: it is to be the reward model and there is none.
    """
    if source == "verifier":
        return TextReward(tokenizer)
    if reward is None:
        raise ValueError("reward = reward_model needs the artifact of a reward_model stage; without one use reward = verifier")
    return RewardModelReward(load_reward(reward, device))


def reward_of(
    config: ScoredConfig, tokenizer: PreTrainedTokenizerBase, policy: Path, reward: Path | None, device: torch.device
) -> RewardFunction:
    """The reward that a configuration names: one source, or the weighted sum of its terms.

    Raises:
        ValueError: a source cannot be loaded: no reward model, no such function, a judge that cannot tell yes from no.
    """
    if config.reward != "weighted":
        return reward_function(config.reward, tokenizer, reward, device)
    return WeightedReward({part.name: (part.weight, _term(part, tokenizer, policy, reward, device)) for part in config.rewards})


def _term(
    part: RewardComponent, tokenizer: PreTrainedTokenizerBase, policy: Path, reward: Path | None, device: torch.device
) -> RewardFunction:
    if part.source == "judge":
        folder = Path(part.judge_model) if part.judge_model else policy
        return JudgeReward(tokenizer, load_language_judge(folder, part.question, part.yes, part.no, device))
    if part.source == "callable":
        return TextReward(tokenizer, judge_of(load_callable(part.callable, f"callable of reward {part.name!r}")))
    if part.source == "language":
        return TextReward(tokenizer, judge_of(language_consistency))
    if part.source == "format":
        return TextReward(tokenizer, format_judge(part.pattern))
    return reward_function(part.source, tokenizer, reward, device)
