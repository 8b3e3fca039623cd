"""Direct preference optimisation.

Axes: ``P`` pairs; log-probabilities are sums over the tokens of a completion, in nats.
"""

import torch.nn.functional as F
from torch import Tensor

from models.losses.sums import Sums, mean_of


def dpo_loss(
    chosen_logp_P: Tensor, rejected_logp_P: Tensor, chosen_ref_logp_P: Tensor, rejected_ref_logp_P: Tensor, *, beta: float, pairs: int
) -> tuple[Tensor, Sums]:
    """-log sigmoid(beta * ((logp_w - ref_w) - (logp_l - ref_l))), summed and divided by the pairs of the whole batch.

    By hand: logp = (-1, -2), ref = (-1.5, -1.5), beta 0.1: z = 0.1 * (0.5 + 0.5) = 0.1, loss = log(1 + e^-0.1) = 0.644397.
    Its gradient is -beta * sigmoid(-z) * [grad logp_w - grad logp_l].

    Args:
        chosen_logp_P: log-probability of the preferred completion under the policy.
        rejected_logp_P: of the other one.
        chosen_ref_logp_P: the same under the frozen reference.
        rejected_ref_logp_P: likewise.
        beta: strength of the tie to the reference, per nat.
        pairs: pairs of the whole batch, all micro-batches together.

    The chosen and rejected log-probabilities are reported apart: the loss widens the gap, and the chosen one may fall.

    Source: Rafailov et al. 2023, equation 7.
    """
    chosen_gain_P = chosen_logp_P - chosen_ref_logp_P
    rejected_gain_P = rejected_logp_P - rejected_ref_logp_P
    z_P = beta * (chosen_gain_P - rejected_gain_P)
    return -F.logsigmoid(z_P).sum() / pairs, {
        "train/loss": mean_of(-F.logsigmoid(z_P)),
        "train/accuracy": mean_of((z_P > 0).float()),
        "dpo/margin": mean_of(z_P),
        "dpo/chosen_logp_nats": mean_of(chosen_logp_P),
        "dpo/rejected_logp_nats": mean_of(rejected_logp_P),
        "dpo/chosen_reward": mean_of(beta * chosen_gain_P),
        "dpo/rejected_reward": mean_of(beta * rejected_gain_P),
    }
