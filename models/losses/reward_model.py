"""Reward modelling from comparisons.

Axes: ``P`` pairs.
"""

import torch.nn.functional as F
from torch import Tensor

from models.losses.sums import Sums, masked, mean_of
from models.losses.ties import rao_kupper


def bradley_terry_loss(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, pairs: int) -> tuple[Tensor, Sums]:
    """-log sigmoid(r_chosen - r_rejected - margin), summed and divided by the pairs of the whole batch.

    Only differences matter: adding a constant to both rewards changes nothing.
    By hand: r = (1, 0), margin 0: -log sigmoid(1) = log(1 + e^-1) = 0.313262.

    Args:
        chosen_P: reward of the preferred completion, float32.
        rejected_P: reward of the other one.
        margin_P: how far apart they should at least be, in reward units (0 for plain preferences).
        pairs: pairs of the whole batch, all micro-batches together.

    Source: Bradley and Terry 1952; Ouyang et al. 2022, equation 1; the margin of Touvron et al. 2023, equation 2.
    """
    gap_P = chosen_P - rejected_P - margin_P
    loss = -F.logsigmoid(gap_P).sum() / pairs
    return loss, {
        "train/loss": mean_of(-F.logsigmoid(gap_P)),
        "train/accuracy": mean_of((chosen_P > rejected_P).float()),
        "reward_model/margin": mean_of(chosen_P - rejected_P),
        "reward_model/chosen_reward": mean_of(chosen_P),
        "reward_model/rejected_reward": mean_of(rejected_P),
    }


def tie_aware_loss(
    chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, tied_P: Tensor, threshold: float, pairs: int
) -> tuple[Tensor, Sums]:
    """The Rao-Kupper likelihood of won and tied pairs, summed and divided by the pairs of the whole batch; the metrics are of the won ones.

    By hand, threshold log 3: a tied pair with rewards (1, 1) costs log 2 = 0.693147, a won one with (log 3, 0) costs the same.

    Args:
        chosen_P: reward of the preferred completion, or of the first one of a tie, float32.
        rejected_P: reward of the other one.
        margin_P: how far apart the rewards of a won pair should at least be; 0 for ties.
        tied_P: True where neither is better.
        threshold: differences of rewards that a judge does not see.
        pairs: pairs of the whole batch, all micro-batches together.

    Source: Rao and Kupper 1967.
    """
    loss_P = rao_kupper(chosen_P - rejected_P - margin_P, tied_P, threshold)
    return loss_P.sum() / pairs, {
        "train/loss": mean_of(loss_P),
        "train/accuracy": masked((chosen_P > rejected_P).float(), ~tied_P),
        "reward_model/margin": masked(chosen_P - rejected_P, ~tied_P),
        "reward_model/chosen_reward": masked(chosen_P, ~tied_P),
        "reward_model/rejected_reward": masked(rejected_P, ~tied_P),
    }
