"""Which of two completions is better: the probability that one is preferred to another.

Axes: ``P`` prompts, ``G`` completions of each.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from data.packing import Group
from data.records import Prompt
from models.ensembles import load_reward
from models.heads import HeadModel
from models.preference_model import PreferenceModel, advantage, load_preference_model
from models.rewards import RewardFunction, RewardModelReward, Scored, TextReward

# (prompts, completions, opponents) -> P(completion preferred to the opponent at its place), in [0, 1]
Duel = Callable[[Sequence[Prompt], Sequence[Group], Sequence[Group]], Scored]


@dataclass
class ScoreDuel:
    """A duel of scores. What could not be scored is counted."""

    reward: RewardFunction
    probability: Callable[[float], float]  # of winning, from the difference of two scores

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group], opponents: Sequence[Group]) -> Scored:
        both = [Group(g.prompt, [*g.completions, *o.completions]) for g, o in zip(groups, opponents, strict=True)]
        scored = self.reward(prompts, both)
        rows = []
        for group, row in zip(groups, scored.reward_PG, strict=True):
            count = len(group.completions)
            rows.append([self.probability(a - b) for a, b in zip(row[:count], row[count:], strict=True)])
        return Scored(rows, scored.failures)


def higher_wins(gap: float) -> float:
    """1 for the higher score, 0 for the lower, 1/2 for a tie."""
    return 0.5 + 0.5 * ((gap > 0) - (gap < 0))


def bradley_terry(gap: float, deviation: float) -> float:
    """sigmoid of the difference of raw scores: normalised ones are ``deviation`` times too close.

    By hand: a normalised gap of 0.5 and deviation 2: sigmoid(1) = 0.731059.
    """
    return 0.5 * (1 + math.tanh(0.5 * gap * deviation))


@dataclass
class PreferenceDuel:
    """A duel judged by a preference model of two arguments, which may be non-transitive."""

    model: PreferenceModel
    max_tokens: int = 8192

    def __call__(self, prompts: Sequence[Prompt], groups: Sequence[Group], opponents: Sequence[Group]) -> Scored:
        both = [Group(g.prompt, [*g.completions, *o.completions]) for g, o in zip(groups, opponents, strict=True)]
        parts = self.model.embed(both, self.max_tokens).split([len(group.completions) for group in both])
        return Scored([advantage(*numbers_GW.chunk(2)).sigmoid().tolist() for numbers_GW in parts])


def duel_function(source: str, tokenizer: PreTrainedTokenizerBase, reward: Path | None, device: torch.device) -> Duel:
    """Who judges duels: the verifier by its scores, the reward model by the probability that it was trained to tell, or a preference model.

    Raises:
        ValueError: it names a model and there is none, or one of the other kind.
    """
    if source == "verifier":
        return ScoreDuel(TextReward(tokenizer), higher_wins)
    if reward is None:
        raise ValueError(f"reward = {source} needs the artifact of a {source} stage; without one use reward = verifier")
    if source == "preference_model":
        return PreferenceDuel(load_preference_model(reward, device))
    model = load_reward(reward, device)
    # Members of an ensemble are normalised one by one: there is no deviation that would lead back to raw scores.
    deviation = model.rule.deviation if isinstance(model, HeadModel) else 1.0
    return ScoreDuel(RewardModelReward(model), lambda gap: bradley_terry(gap, deviation))
