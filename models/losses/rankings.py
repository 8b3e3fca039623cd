"""Losses on K-way rankings.

Axes: ``M`` ordered pairs (better, worse) of completions of one prompt.
"""

import torch.nn.functional as F
from torch import Tensor

from models.losses.sums import Sums, mean_of


def k_wise_loss(better_M: Tensor, worse_M: Tensor, margin_M: Tensor, weight_M: Tensor, prompts: int) -> tuple[Tensor, Sums]:
    """Mean over prompts of 1/C(k,2) * sum over pairs i ranked above j of -log sigmoid(s_i - s_j - margin).

    The denominator is C(k,2) = k (k - 1) / 2 of all completions of the prompt: a tie makes no pair, and its place counts as zero.
    With k = 2 this is the Bradley-Terry loss; with s = beta * log(pi / pi_ref) it is DPO on rankings.

    By hand: s = (2, 1, 0) in the order of the ranks: (log(1 + e^-1) + log(1 + e^-2) + log(1 + e^-1)) / 3 = 0.251151.

    Args:
        better_M: score of the better completion of each pair.
        worse_M: of the other one.
        margin_M: how far apart they should at least be (0 for plain rankings).
        weight_M: 1/C(k,2) of the pair's prompt.
        prompts: prompts of the whole batch, all micro-batches together.

    Source: Ouyang et al. 2022, equation 1 (all C(K,2) comparisons of a prompt are one element of the batch); Zhu et al. 2023, K-wise.
    """
    gap_M = better_M - worse_M
    loss_M = -F.logsigmoid(gap_M - margin_M) * weight_M
    return loss_M.sum() / prompts, {"train/accuracy": mean_of((gap_M > 0).float())}


def centring_penalty(first: Tensor, second: Tensor) -> Tensor:
    """(r_w + r_l)^2 of each pair: what keeps rewards near 0, since the loss itself sees differences only.

    By hand: (1, 0.5) gives 2.25; (1, -1) gives 0.

    Source: Eisenstein et al. 2023, the regularised reward-model objective.
    """
    return (first + second) ** 2
