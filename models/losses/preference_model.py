"""Preference models that judge two completions at once.

Axes: ``P`` pairs.
"""

import torch.nn.functional as F
from torch import Tensor

from models.losses.sums import Sums, mean_of


def preference_loss(advantage_P: Tensor, pairs: int) -> tuple[Tensor, Sums]:
    """-log sigmoid(s(chosen, rejected)), summed and divided by the pairs of the whole batch.

    By hand: s = 1: log(1 + e^-1) = 0.313262.

    Args:
        advantage_P: s(chosen, rejected), the log-odds that the chosen completion beats the rejected one.
        pairs: pairs of the whole batch, all micro-batches together.

    Source: Munos et al. 2024 (maximum likelihood of P(y beats y' | x)); Zhang et al. 2024, general preference model.
    """
    loss_P = -F.logsigmoid(advantage_P)
    return loss_P.sum() / pairs, {
        "train/loss": mean_of(loss_P),
        "train/accuracy": mean_of((advantage_P > 0).float()),
        "preference_model/chosen_probability": mean_of(advantage_P.sigmoid()),
    }
