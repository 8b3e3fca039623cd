"""Kahneman-Tversky optimisation: completions that are good or bad, without partners.

Axes: ``C`` completions; log-probabilities are sums over the tokens of a completion, in nats.
"""

import torch
from torch import Tensor

from models.configs.kto import KTOConfig
from models.losses.sums import Sums, masked, mean_of


def kto_loss(
    logp_C: Tensor, ref_logp_C: Tensor, desirable_C: Tensor, kl_nats: float, knobs: KTOConfig, completions: int
) -> tuple[Tensor, Sums]:
    """w (1 - sigmoid(+-beta (log pi/pi_ref - z0))), + and w = desirable_weight for the desirable, - and undesirable_weight for the others.

    By hand, beta 0.1, z0 = 1, weights 1: a desirable log-ratio of 11 costs 1 - sigmoid(1) = 0.268941, an undesirable one sigmoid(1) =
    0.731059.

    Args:
        logp_C: log-probability of each completion under the policy.
        ref_logp_C: the same under the frozen reference.
        desirable_C: True where the completion is desirable.
        kl_nats: z0, what an average completion gained: the KL to the reference as estimated by ``reference_point``; a constant.
        knobs: beta and the weights.
        completions: completions of the whole batch, all micro-batches together.

    Source: Ethayarajh et al. 2024, the KTO loss of section 4.
    """
    ratio_C = logp_C - ref_logp_C
    sign_C = desirable_C.to(ratio_C.dtype) * 2 - 1
    weight_C = ratio_C.new_tensor([knobs.undesirable_weight, knobs.desirable_weight])[desirable_C.long()]
    # 1 - sigmoid(x) as sigmoid(-x): the difference would lose what is left of a nearly certain one.
    loss_C = weight_C * torch.sigmoid(-sign_C * knobs.beta * (ratio_C - kl_nats))
    reward_C = knobs.beta * ratio_C
    return loss_C.sum() / completions, {
        "train/loss": mean_of(loss_C),
        "kto/kl_nats": (torch.tensor(kl_nats * len(logp_C)), float(len(logp_C))),
        "kto/desirable_reward": masked(reward_C, desirable_C),
        "kto/undesirable_reward": masked(reward_C, ~desirable_C),
        "kto/desirable_logp_nats": masked(logp_C, desirable_C),
        "kto/undesirable_logp_nats": masked(logp_C, ~desirable_C),
    }


def reference_point(logp_C: Tensor, ref_logp_C: Tensor) -> float:
    """z0 = max(0, mean of log pi/pi_ref over completions of other prompts): an estimate of the KL that costs no sampling.

    By hand: log-ratios (3, -1) give 1, (-3, 1) give 0. Source: Ethayarajh et al. 2024, section 4.
    """
    return max(0.0, float((logp_C - ref_logp_C).double().mean()))
