"""Comparisons that may end in a tie.

Axes: ``P`` pairs.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def rao_kupper(gap_P: Tensor, tied_P: Tensor, threshold: float) -> Tensor:
    """Negative log-likelihood of each comparison under Rao and Kupper's model, ``[P]``, in nats.

    d the difference of the two rewards, eta the threshold within which a judge sees none:
    won: -log sigmoid(d - eta)        tied: -log sigmoid(d - eta) - log sigmoid(-d - eta) - log(e^(2 eta) - 1)

    The probabilities of won, lost and tied add up to 1. Equal answers tie with probability tanh(eta / 2), half of the time at eta = log 3.
    A tie pulls d to 0; as eta goes to 0 ties become impossible and the rest is the Bradley-Terry model.

    By hand, eta = log 3: d = 0 is won with 1/4 (loss 1.386294) and tied with 1/2 (0.693147); d = log 3 is won with 1/2, lost with 1/10 and
    tied with 2/5 (0.916291).

    Source: Rao and Kupper 1967; Chen et al. 2024, "On extending direct preference optimization to accommodate ties" (DPO-RK, and log 3).
    """
    won_P = -F.logsigmoid(gap_P - threshold)
    # log(e^(2 eta) - 1), of which no part overflows.
    wide = 2 * threshold + math.log(-math.expm1(-2 * threshold))
    return torch.where(tied_P, won_P - F.logsigmoid(-gap_P - threshold) - wide, won_P)
