"""What a model of preferences says of pairs of completions, whichever kind of model it is.

Axes: ``P`` pairs, ``M`` members of an ensemble, ``C`` completions (first and second of each pair in turn), ``W`` numbers a completion.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.packing import Group
from models.ensembles import Ensemble, aggregate_scores, load_reward
from models.heads import HeadModel
from models.preference_model import HEAD_FILE as PREFERENCE_FILE
from models.preference_model import PreferenceModel, advantage, load_preference_model

Comparer = HeadModel | Ensemble | PreferenceModel


@dataclass(frozen=True)
class Compared:
    """``margin_P``: reward of the first less that of the second, as policies are given it. ``p_P``: how likely the first is better."""

    margin_P: Tensor
    p_P: Tensor


def compare_completions(model: Comparer, groups: Sequence[Group], max_tokens: int) -> Compared:
    """Compare the two completions of every group, in float64.

    A reward model: p = sigmoid(deviation * margin), the sigmoid of its scores before the rule scales them. An ensemble: the margin of its
    members' aggregate, and the mean of their probabilities. A preference model: the margin is the log-odds.
    """
    if isinstance(model, PreferenceModel):
        numbers_P2W = model.embed(groups, max_tokens).cpu().double().view(len(groups), 2, -1)
        margin_P = advantage(numbers_P2W[:, 0], numbers_P2W[:, 1])
        return Compared(margin_P, margin_P.sigmoid())
    if isinstance(model, Ensemble):
        score_MC = model.member_scores(groups, max_tokens).cpu().double()
        score_C = aggregate_scores(score_MC, model.rule, model.coefficient)
        return Compared(score_C[::2] - score_C[1::2], model.probabilities(score_MC))
    score_C = model.score(groups, max_tokens).cpu().double()
    margin_P = score_C[::2] - score_C[1::2]
    return Compared(margin_P, torch.sigmoid(model.rule.deviation * margin_P))


def load_comparer(folder: Path, device: torch.device | str = "cpu") -> Comparer:
    """A reward model, an ensemble of them, or a preference model.

    Raises:
        ValueError: the folder holds none of them.
    """
    return load_preference_model(folder, device) if (folder / PREFERENCE_FILE).is_file() else load_reward(folder, device)


def parts_of(model: Comparer) -> set[str]:
    """The parts of the preferences that it was trained on."""
    if isinstance(model, Ensemble):
        return {rule.pairs for rule in model.rules()}
    return {model.rule.pairs} if isinstance(model, HeadModel) else {"train"}
