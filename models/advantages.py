"""From rewards to advantages.

Axes: ``C`` completions, ``T`` tokens of the longest one, ``P`` prompts, ``G`` samples per prompt.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.losses.kl import KL_ESTIMATORS


def token_rewards(
    score_C: Tensor, logp_CT: Tensor, ref_logp_CT: Tensor, mask_CT: Tensor, kl_coefficient: float, estimator: str = "k1"
) -> Tensor:
    """r_t = -beta KL_t on every completion token, plus the completion's score on its last one.

    KL_t is an estimate of the KL to the reference; k1, log pi - log pi_ref, is the one whose sum over a completion has the KL objective
    as its expectation and its gradient.

    Source: Ouyang et al. 2022, equation 2 (without the pretraining term).
    """
    reward_CT = torch.where(mask_CT, -kl_coefficient * KL_ESTIMATORS[estimator](logp_CT, ref_logp_CT), 0.0)
    last_C = mask_CT.sum(-1) - 1
    return reward_CT.index_put((torch.arange(len(score_C), device=score_C.device), last_C), score_C, accumulate=True)


def overlong(length_C: Tensor, longest: int, buffer: int) -> Tensor:
    """How far into the last ``buffer`` tokens before the longest completion allowed each one reaches: 0 before them, 1 at their end.

    By hand, longest 20, buffer 5: lengths (15, 18, 20) give (0, 0.6, 1). Buffer 0 gives 0.

    Source: Yu et al. 2025 (DAPO), equation 13, with the sign left to the caller.
    """
    return ((length_C - (longest - buffer)) / max(buffer, 1)).clamp(0, 1)


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


def explained_variance(value_CT: Tensor, return_CT: Tensor, mask_CT: Tensor) -> float:
    """1 - Var(G - V) / Var(G) over the mask: 1 is perfect, 0 no better than a constant, below 0 worse than one.

    By hand: G (1, 3), V (1, 2): Var(0, 1) = 0.25, Var(1, 3) = 1: 0.75.
    """
    error, spread = (return_CT - value_CT)[mask_CT].var(correction=0), return_CT[mask_CT].var(correction=0)
    return float(1 - error / spread.clamp_min(1e-8))


def whiten(values_CT: Tensor, mask_CT: Tensor) -> Tensor:
    """Shift and scale to mean 0 and standard deviation 1 over the mask; all equal values become 0."""
    chosen = values_CT[mask_CT]
    flat = (chosen == chosen[:1]).all()  # not a deviation of 0: the mean of equal floats can miss them by a rounding
    scaled_CT = (values_CT - chosen.mean()) / (chosen.std(correction=0) + 1e-8)
    return torch.where(mask_CT & ~flat, scaled_CT, 0.0)


def scale_rewards(reward_CT: Tensor, mask_CT: Tensor) -> Tensor:
    """Token rewards scaled to standard deviation 1 over the mask, their mean left where it is; all equal rewards stay.

    The mean is kept because a shift of every token would pay for length.
    By hand: rewards (0, 0, 3, 1) have mean 1 and deviation sqrt(1.5) = 1.224745: (0.183503, 0.183503, 2.632993, 1).

    Source: Ziegler et al. 2019, the released code (whiten with shift_mean=False).
    """
    chosen = reward_CT[mask_CT]
    scaled_CT = whiten(reward_CT, mask_CT) + chosen.mean()
    return torch.where(mask_CT, scaled_CT, 0.0)


@dataclass
class MovingAverage:
    """A running mean of rewards, sum_k d^k r_k / sum_k d^k with r_0 the newest; 0 before the first."""

    decay: float
    total: float = 0.0
    weight: float = 0.0

    @property
    def value(self) -> float:
        """The average so far."""
        return self.total / self.weight if self.weight else 0.0

    def add(self, reward: float) -> None:
        """Take in a round's mean reward."""
        self.total = self.decay * self.total + reward
        self.weight = self.decay * self.weight + 1.0


def without_baseline(reward_PG: Tensor, average: MovingAverage) -> Tensor:
    """A = r: unbiased, of the largest variance."""
    return reward_PG


def less_batch_mean(reward_PG: Tensor, average: MovingAverage) -> Tensor:
    """A_i = r_i - mean_j r_j over all C completions of the round.

    The mean holds r_i itself, so the expected gradient is the true one times 1 - 1/C.
    By hand: rewards (1, 0, 0, 3): mean 1: (0, -1, -1, 2).
    """
    return reward_PG - reward_PG.mean()


def less_moving_average(reward_PG: Tensor, average: MovingAverage) -> Tensor:
    """A_i = r_i - b, b the moving average of the rounds before this one: it knows nothing of these samples, so it is unbiased."""
    return reward_PG - average.value


def less_the_others(reward_PG: Tensor, average: MovingAverage) -> Tensor:
    """A_i = r_i - mean over the other samples of the same prompt, = G/(G-1) (r_i - mean of the group): unbiased (RLOO).

    By hand: rewards (1, 0, 0, 3): the others' means are (1, 4/3, 4/3, 1/3): (0, -4/3, -4/3, 8/3).

    Source: Kool et al. 2019; Ahmadian et al. 2024, equation 6.
    """
    samples = reward_PG.shape[1]
    return (reward_PG - reward_PG.mean(-1, keepdim=True)) * (samples / (samples - 1))


BASELINES: dict[str, Callable[[Tensor, MovingAverage], Tensor]] = {
    "none": without_baseline,
    "batch_mean": less_batch_mean,
    "moving_average": less_moving_average,
    "leave_one_out": less_the_others,
}


def reward_to_go(reward_CT: Tensor, value_CT: Tensor, mask_CT: Tensor, discount: float) -> tuple[Tensor, Tensor]:
    """A_t = G_t - V_t with G_t = sum_{j>=t} gamma^(j-t) r_j: generalised advantages at lambda 1. Returns advantages and returns G.

    By hand, gamma 1, rewards (0, 1), values (0.5, 0.8): G = (1, 1), A = (0.5, 0.2).

    Source: Mnih et al. 2016 (A3C, without its n-step cut).
    """
    return gae(reward_CT, value_CT, mask_CT, discount=discount, decay=1.0)


def group_advantages(reward_PG: Tensor, by_deviation: bool = True) -> tuple[Tensor, Tensor]:
    """A_pg = (r_pg - mean_g r) / std_g r, with the population standard deviation; a group whose rewards are all equal gets 0.

    By hand: rewards (1, 0, 0, 1): mean 0.5, std 0.5, advantages (1, -1, -1, 1).

    Args:
        reward_PG: rewards.
        by_deviation: False leaves out the division, which weighs prompts of little spread more (Liu et al. 2025, Dr. GRPO).

    Returns:
        Advantages ``[P, G]`` and a mask ``[P]`` of the groups without spread, which teach nothing and are counted.

    Source: Shao et al. 2024 (DeepSeekMath), section 4.1.2.
    """
    mean_P1 = reward_PG.mean(-1, keepdim=True)
    # Equality, not a small deviation: the mean of equal floats can differ from them by a rounding that the division would blow up.
    flat_P = (reward_PG == reward_PG[:, :1]).all(-1)
    deviation_P1 = reward_PG.std(-1, correction=0, keepdim=True) if by_deviation else torch.ones_like(mean_P1)
    advantage_PG = torch.where(flat_P[:, None], 0.0, (reward_PG - mean_P1) / torch.where(flat_P[:, None], 1.0, deviation_P1))
    return advantage_PG, flat_P
