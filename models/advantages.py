"""From rewards to advantages.

Axes: ``C`` completions, ``T`` tokens of the longest one, ``P`` prompts, ``G`` samples per prompt.
"""

import torch
from torch import Tensor


def token_rewards(score_C: Tensor, logp_CT: Tensor, ref_logp_CT: Tensor, mask_CT: Tensor, kl_coefficient: float) -> Tensor:
    """r_t = -beta (logp_t - ref_logp_t) on every completion token, plus the completion's score on its last one.

    The k1 estimate of the KL to the reference, inside the reward.

    Source: Ouyang et al. 2022, equation 2 (without the pretraining term).
    """
    reward_CT = torch.where(mask_CT, -kl_coefficient * (logp_CT - ref_logp_CT), 0.0)
    last_C = mask_CT.sum(-1) - 1
    return reward_CT.index_put((torch.arange(len(score_C), device=score_C.device), last_C), score_C, accumulate=True)


def gae(reward_CT: Tensor, value_CT: Tensor, mask_CT: Tensor, *, discount: float, decay: float) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation: A_t = delta_t + gamma lambda A_{t+1}, delta_t = r_t + gamma V_{t+1} - V_t, V after the end = 0.

    By hand, gamma 1, lambda 0.5, rewards (0, 1), values (0.5, 0.8): delta = (0.3, 0.2), A = (0.3 + 0.5 * 0.2, 0.2) = (0.4, 0.2), returns
    A + V = (0.9, 1.0).

    Args:
        reward_CT: reward of each token.
        value_CT: value of the state before each token.
        mask_CT: True on completion tokens, which are a prefix of each row.
        discount: gamma.
        decay: lambda.

    Returns:
        Advantages and returns ``[C, T]``, 0 outside the mask.

    Source: Schulman et al. 2016, equations 11 to 16.
    """
    advantage_CT = torch.zeros_like(reward_CT)
    later_C = torch.zeros_like(reward_CT[:, 0])
    next_value_C = torch.zeros_like(later_C)
    for t in reversed(range(reward_CT.shape[1])):
        delta_C = reward_CT[:, t] + discount * next_value_C - value_CT[:, t]
        later_C = torch.where(mask_CT[:, t], delta_C + discount * decay * later_C, 0.0)
        next_value_C = torch.where(mask_CT[:, t], value_CT[:, t], 0.0)
        advantage_CT[:, t] = later_C
    return advantage_CT, torch.where(mask_CT, advantage_CT + value_CT, 0.0)


def whiten(values_CT: Tensor, mask_CT: Tensor) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the mask; all equal values become 0."""
    chosen = values_CT[mask_CT]
    flat = (chosen == chosen[:1]).all()  # not a deviation of 0: the mean of equal floats can miss them by a rounding
    scaled_CT = (values_CT - chosen.mean()) / (chosen.std(correction=0) + 1e-8)
    return torch.where(mask_CT & ~flat, scaled_CT, 0.0)


def group_advantages(reward_PG: Tensor) -> tuple[Tensor, Tensor]:
    """A_pg = (r_pg - mean_g r) / std_g r, with the population standard deviation; a group whose rewards are all equal gets 0.

    By hand: rewards (1, 0, 0, 1): mean 0.5, std 0.5, advantages (1, -1, -1, 1).

    Returns:
        Advantages ``[P, G]`` and a mask ``[P]`` of the groups without spread, which teach nothing and are counted.

    Source: Shao et al. 2024 (DeepSeekMath), section 4.1.2.
    """
    mean_P1 = reward_PG.mean(-1, keepdim=True)
    # Equality, not a small deviation: the mean of equal floats can differ from them by a rounding that the division would blow up.
    flat_P = (reward_PG == reward_PG[:, :1]).all(-1)
    deviation_P1 = reward_PG.std(-1, correction=0, keepdim=True)
    advantage_PG = torch.where(flat_P[:, None], 0.0, (reward_PG - mean_P1) / torch.where(flat_P[:, None], 1.0, deviation_P1))
    return advantage_PG, flat_P
