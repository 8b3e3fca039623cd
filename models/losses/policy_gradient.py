"""Clipped policy gradients and the value function's regression.

Axes: ``C`` completions, ``T`` tokens of the longest one; masks are True on completion tokens.
"""

import torch
from torch import Tensor

from models.losses.sums import Sums, masked


def clipped_surrogate(logp_CT: Tensor, old_logp_CT: Tensor, advantage_CT: Tensor, mask_CT: Tensor, clip: float) -> tuple[Tensor, Sums]:
    """Per-token PPO loss -min(rho A, clip(rho, 1 - eps, 1 + eps) A) with rho = exp(logp - old_logp); 0 outside the mask.

    By hand, eps 0.2: rho 1.5 and A 2 give -min(3, 2.4) = -2.4; rho 1.5 and A -1 give -min(-1.5, -1.2) = 1.5: the clip binds only
    where it lowers the objective.

    Args:
        logp_CT: log-probabilities under the policy now, nats, differentiable.
        old_logp_CT: the same at sampling time.
        advantage_CT: advantages.
        mask_CT: True on completion tokens.
        clip: eps.

    Returns:
        The per-token loss ``[C, T]``, to be reduced by the caller's normaliser, and metrics.

    Source: Schulman et al. 2017, equation 7.
    """
    log_ratio_CT = torch.where(mask_CT, logp_CT - old_logp_CT, 0.0)
    ratio_CT = log_ratio_CT.exp()
    plain_CT = ratio_CT * advantage_CT
    clipped_CT = ratio_CT.clamp(1 - clip, 1 + clip) * advantage_CT
    loss_CT = torch.where(mask_CT, -torch.minimum(plain_CT, clipped_CT), 0.0)
    return loss_CT, {
        "train/clip_fraction": masked((clipped_CT < plain_CT).float(), mask_CT),
        "train/ratio": masked(ratio_CT, mask_CT),
        "train/kl_old_nats": masked(k3(logp_CT, old_logp_CT), mask_CT),
    }


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(pi || ref) per token: exp(ref - logp) - (ref - logp) - 1, never negative, unbiased.

    By hand: logp = log 0.5, ref = log 0.25: 0.5 - log 0.5 - 1 = 0.193147.

    Source: Schulman 2020, "Approximating KL divergence"; Shao et al. 2024, equation 4.
    """
    gap = ref_logp - logp
    return gap.exp() - gap - 1


def value_loss(value_CT: Tensor, old_value_CT: Tensor, return_CT: Tensor, mask_CT: Tensor, clip: float) -> tuple[Tensor, Sums]:
    """Per-token clipped regression 1/2 max((V - G)^2, (clip(V, V_old - eps, V_old + eps) - G)^2); 0 outside the mask.

    By hand, eps 0.2: V 1, V_old 0, G 0.5: clipped V is 0.2; 1/2 max(0.25, 0.09) = 0.125.

    Source: Schulman et al. 2017; the clip is that of the reference implementation.
    """
    near_CT = old_value_CT + (value_CT - old_value_CT).clamp(-clip, clip)
    error_CT = torch.maximum((value_CT - return_CT) ** 2, (near_CT - return_CT) ** 2)
    loss_CT = torch.where(mask_CT, 0.5 * error_CT, 0.0)
    return loss_CT, {
        "ppo/value_loss": masked(loss_CT, mask_CT),
        "ppo/value": masked(value_CT, mask_CT),
        "ppo/return": masked(return_CT, mask_CT),
    }
