"""Clipped policy gradients and the value function's regression.

Axes: ``C`` completions, ``T`` tokens of the longest one; masks are True on completion tokens.
"""

import math

import torch
from torch import Tensor

from models.losses.kl import k3
from models.losses.sums import Sums, masked


def reinforce_loss(logp_CT: Tensor, advantage_CT: Tensor, mask_CT: Tensor, sequences: int) -> tuple[Tensor, Sums]:
    """-sum_t A_t log pi(a_t | s_t) of each completion, summed and divided by the completions of the whole batch.

    With one advantage a completion this is -A sum_t logp, sequence-level REINFORCE; with rewards-to-go less a value it is the
    actor's part of an actor-critic.
    By hand: logp (-1, -2) with A 2 and logp (-3) with A -1: -(2 * -3 + -1 * -3) / 2 = (6 - 3) / 2 = 1.5.

    Args:
        logp_CT: log-probabilities under the policy that sampled, nats, differentiable.
        advantage_CT: advantages, not differentiated.
        mask_CT: True on completion tokens.
        sequences: completions of the whole batch, all micro-batches together.

    Source: Williams 1992; Sutton and Barto 2018, section 13.4.
    """
    loss_CT = torch.where(mask_CT, -advantage_CT * logp_CT, 0.0)
    loss = loss_CT.sum() / sequences
    return loss, {"train/loss": (loss_CT.detach().sum(), float(len(loss_CT)))}


def clipped_surrogate(
    logp_CT: Tensor, old_logp_CT: Tensor, advantage_CT: Tensor, mask_CT: Tensor, clip: float, clip_high: float = 0.0
) -> tuple[Tensor, Sums]:
    """Per-token PPO loss -min(rho A, clip(rho, 1 - eps, 1 + eps_high) A) with rho = exp(logp - old_logp); 0 outside the mask.

    By hand, eps 0.2: rho 1.5 and A 2 give -min(3, 2.4) = -2.4; rho 1.5 and A -1 give -min(-1.5, -1.2) = 1.5: the clip binds only
    where it lowers the objective.

    Args:
        logp_CT: log-probabilities under the policy now, nats, differentiable.
        old_logp_CT: the same at sampling time.
        advantage_CT: advantages.
        mask_CT: True on completion tokens.
        clip: eps.
        clip_high: eps_high, which lets unlikely tokens rise further (Yu et al. 2025, DAPO, equation 10); 0 = the same as eps.

    Returns:
        The per-token loss ``[C, T]``, to be reduced by the caller's normaliser, and metrics.

    Source: Schulman et al. 2017, equation 7.
    """
    log_ratio_CT = torch.where(mask_CT, logp_CT - old_logp_CT, 0.0)
    ratio_CT = log_ratio_CT.exp()
    plain_CT = ratio_CT * advantage_CT
    clipped_CT = ratio_CT.clamp(1 - clip, 1 + (clip_high or clip)) * advantage_CT
    loss_CT = torch.where(mask_CT, -torch.minimum(plain_CT, clipped_CT), 0.0)
    return loss_CT, {
        "train/clip_fraction": masked((clipped_CT < plain_CT).float(), mask_CT),
        "train/ratio": masked(ratio_CT, mask_CT),
        "train/kl_old_nats": masked(k3(logp_CT, old_logp_CT), mask_CT),
    }


def value_loss(value_CT: Tensor, old_value_CT: Tensor, return_CT: Tensor, mask_CT: Tensor, clip: float) -> tuple[Tensor, Sums]:
    """Per-token clipped regression 1/2 max((V - G)^2, (clip(V, V_old - eps, V_old + eps) - G)^2); 0 outside the mask.

    eps 0 leaves out the clip: 1/2 (V - G)^2. The factor 1/2 is in here, not in the coefficient that the caller gives.
    By hand, eps 0.2: V 1, V_old 0, G 0.5: clipped V is 0.2; 1/2 max(0.25, 0.09) = 0.125.

    Source: Schulman et al. 2017; the clip is that of the reference implementation.
    """
    near_CT = old_value_CT + (value_CT - old_value_CT).clamp(-(clip or math.inf), clip or math.inf)
    error_CT = torch.maximum((value_CT - return_CT) ** 2, (near_CT - return_CT) ** 2)
    loss_CT = torch.where(mask_CT, 0.5 * error_CT, 0.0)
    return loss_CT, {
        "ppo/value_loss": masked(loss_CT, mask_CT),
        "ppo/value": masked(value_CT, mask_CT),
        "ppo/return": masked(return_CT, mask_CT),
    }
