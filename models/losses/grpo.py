"""GRPO and the methods that differ from it in how the ratio is bounded and what the loss is divided by.

    loss      ratio                                   divided by                                       advantage over
    grpo      of each token, clipped                  each completion's tokens, then completions       the group's deviation
    dr_grpo   of each token, clipped                  completions x the longest completion allowed     1
    dapo      of each token, clipped                  tokens of the round, shared out over updates     the group's deviation
    bnpo      of each token, clipped                  tokens of the update's own minibatch             the group's deviation
    gspo      of each completion, clipped             each completion's tokens, then completions       the group's deviation
    cispo     of each token, detached, cut above      tokens of the round, shared out over updates     the group's deviation

With one minibatch a round dapo and bnpo divide by the same number. No denominator is that of a micro-batch: micro-batches are for memory
alone.

Axes: ``C`` completions, ``T`` tokens of the longest one; masks are True on completion tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.losses.policy_gradient import clipped_surrogate
from models.losses.sums import Sums, masked


def sequence_surrogate(
    logp_CT: Tensor, old_logp_CT: Tensor, advantage_CT: Tensor, mask_CT: Tensor, clip: float, clip_high: float = 0.0
) -> tuple[Tensor, Sums]:
    """``clipped_surrogate`` with the completion's ratio s = (pi(o) / pi_old(o))^(1/len) = exp(mean_t (logp - old_logp)) at each token.

    By hand: log-ratios (0.3, 0.1), A 1, eps 0.1: s = e^0.2 = 1.2214, clipped to 1.1: -1.1 at both tokens.
    s moves far less than a token's ratio: the paper clips at 3e-4 below and 4e-4 above.

    Source: Zheng et al. 2025 (GSPO), equations 5 to 7.
    """
    gap_CT = torch.where(mask_CT, logp_CT - old_logp_CT, 0.0)
    mean_CT = (gap_CT.sum(-1) / mask_CT.sum(-1))[:, None].expand_as(gap_CT)
    return clipped_surrogate(mean_CT, torch.zeros_like(mean_CT), advantage_CT, mask_CT, clip, clip_high)


def weighted_likelihood(
    logp_CT: Tensor, old_logp_CT: Tensor, advantage_CT: Tensor, mask_CT: Tensor, clip: float, clip_high: float = 0.0
) -> tuple[Tensor, Sums]:
    """Per-token -sg(min(rho, 1 + eps_high)) A logp: every token keeps a gradient, however far its ratio went; 0 outside the mask.

    By hand, eps_high 0.5: rho 2, logp -1, A 1: -1.5 * 1 * -1 = 1.5, with the gradient -1.5.
    There is no lower bound, as in the paper; eps stands in for eps_high where that is 0.

    Source: MiniMax 2025 (CISPO), equations 4 and 5.
    """
    _, sums = clipped_surrogate(logp_CT.detach(), old_logp_CT, advantage_CT, mask_CT, clip, clip_high)
    ratio_CT = torch.where(mask_CT, logp_CT.detach() - old_logp_CT, 0.0).exp()
    most = 1 + (clip_high or clip)
    loss_CT = torch.where(mask_CT, -ratio_CT.clamp(max=most) * advantage_CT * logp_CT, 0.0)
    return loss_CT, sums | {"train/clip_fraction": masked((ratio_CT > most).float(), mask_CT)}


@dataclass(frozen=True)
class Sizes:
    """What a loss can be divided by."""

    sequences: int  # completions of the update
    tokens: int  # of the update
    round_tokens: float  # tokens of the round over its minibatches
    longest: int  # tokens that a completion may have


def by_sequence(loss_CT: Tensor, mask_CT: Tensor, sizes: Sizes) -> Tensor:
    """1/C sum_i 1/len_i sum_t: the mean over each completion, then over completions (Shao et al. 2024, equation 3)."""
    return (loss_CT.sum(-1) / mask_CT.sum(-1)).sum() / sizes.sequences


def by_longest(loss_CT: Tensor, mask_CT: Tensor, sizes: Sizes) -> Tensor:
    """1/(C L) sum_it: a constant divisor, so that long wrong answers are not cheaper than short ones (Liu et al. 2025, Dr. GRPO)."""
    return loss_CT.sum() / (sizes.sequences * sizes.longest)


def by_round_token(loss_CT: Tensor, mask_CT: Tensor, sizes: Sizes) -> Tensor:
    """Every token of the round weighs the same (Yu et al. 2025, DAPO, equation 8)."""
    return loss_CT.sum() / sizes.round_tokens


def by_token(loss_CT: Tensor, mask_CT: Tensor, sizes: Sizes) -> Tensor:
    """Every token of the update weighs the same, and updates weigh the same whatever their tokens."""
    return loss_CT.sum() / sizes.tokens


@dataclass(frozen=True)
class Variant:
    """One row of the table above."""

    surrogate: Callable[[Tensor, Tensor, Tensor, Tensor, float, float], tuple[Tensor, Sums]]
    reduce: Callable[[Tensor, Tensor, Sizes], Tensor]  # per-token losses, 0 outside the mask
    by_deviation: bool = True


VARIANTS = {
    "grpo": Variant(clipped_surrogate, by_sequence),
    "dr_grpo": Variant(clipped_surrogate, by_longest, by_deviation=False),
    "dapo": Variant(clipped_surrogate, by_round_token),
    "bnpo": Variant(clipped_surrogate, by_token),
    "gspo": Variant(sequence_surrogate, by_sequence),
    "cispo": Variant(weighted_likelihood, by_round_token),
}


def truncated_importance(old_logp_CT: Tensor, sampler_logp_CT: Tensor, mask_CT: Tensor, cap: float) -> tuple[Tensor, Sums]:
    """min(pi_old / pi_sampler, cap) of each token, detached: sampler and trainer compute the same policy with other roundings.

    By hand, cap 2: old_logp -1 and sampler -1.5 give e^0.5 = 1.6487; sampler -3 gives e^2 cut to 2.

    Source: Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training" (truncated importance sampling).
    """
    gap_CT = torch.where(mask_CT, old_logp_CT - sampler_logp_CT, 0.0).detach()
    weight_CT = gap_CT.exp().clamp(max=cap)
    return weight_CT, {"grpo/importance_weight": masked(weight_CT, mask_CT), "grpo/sampler_gap_nats": masked(gap_CT.abs(), mask_CT)}
