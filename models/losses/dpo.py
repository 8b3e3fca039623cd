"""Direct preference optimisation and its relatives: one implicit reward a completion, one loss a pair, a table of which goes with which.

Axes: ``P`` pairs; log-probabilities are sums over the tokens of a completion, in nats.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.configs.dpo import PairLossConfig
from models.losses.sums import Sums, masked, mean_of
from models.losses.ties import rao_kupper

LARGEST_EXPONENT = 40.0  # beyond it the sigmoid is flat, and squares of gradients would leave float32


@dataclass(frozen=True)
class Side:
    """The chosen completions of ``P`` pairs, or the rejected ones. ``ref_logp_P`` is None for a loss without a reference."""

    logp_P: Tensor
    ref_logp_P: Tensor | None
    length_P: Tensor  # scored tokens

    def log_ratio(self, per_token: bool) -> Tensor:
        """log pi / pi_ref of each completion, or of its average token: ``[P]``, nats."""
        assert self.ref_logp_P is not None
        ratio_P = self.logp_P - self.ref_logp_P
        return ratio_P / self.length_P if per_token else ratio_P

    def mean_logp(self) -> Tensor:
        """Log-probability of the average token: ``[P]``, nats."""
        return self.logp_P / self.length_P


def dpo_loss(
    chosen: Side, rejected: Side, knobs: PairLossConfig, pairs: int, tied_P: Tensor | None = None, tie_threshold: float = 0.0
) -> tuple[Tensor, Sums]:
    """The loss that ``knobs.loss`` names, summed and divided by the pairs of the whole batch.

    By hand, sigmoid: logp = (-1, -2), ref = (-1.5, -1.5), beta 0.1: z = 0.1 * (0.5 + 0.5) = 0.1, loss = log(1 + e^-0.1) = 0.644397. Its
    gradient is -beta * sigmoid(-z) * [grad logp_w - grad logp_l].

    Args:
        chosen: the preferred completions.
        rejected: the others, pair by pair.
        knobs: which loss, with what.
        pairs: pairs of the whole batch, all micro-batches together.
        tied_P: True where neither is better; then the likelihood is Rao and Kupper's (DPO-RK), and accuracy is that of the other pairs.
        tie_threshold: of that likelihood, in units of the implicit reward.

    The chosen and rejected log-probabilities are reported apart: the losses widen the gap, and the chosen one may fall. Margin and rewards
    are those of the implicit reward: beta log pi/pi_ref, or what the method has in its place.

    Source: Rafailov et al. 2023, equation 7; see the functions of the table for the relatives.
    """
    reward, loss_of = _METHODS[knobs.loss]
    chosen_reward_P, rejected_reward_P = reward(chosen, knobs), reward(rejected, knobs)
    z_P = chosen_reward_P - rejected_reward_P
    loss_P = loss_of(z_P, chosen, knobs) if tied_P is None else rao_kupper(z_P, tied_P, tie_threshold)
    return loss_P.sum() / pairs, {
        "train/loss": mean_of(loss_P),
        "train/accuracy": mean_of((z_P > 0).float()) if tied_P is None else masked((z_P > 0).float(), ~tied_P),
        "dpo/margin": mean_of(z_P),
        "dpo/chosen_logp_nats": mean_of(chosen.logp_P),
        "dpo/rejected_logp_nats": mean_of(rejected.logp_P),
        "dpo/chosen_reward": mean_of(chosen_reward_P),
        "dpo/rejected_reward": mean_of(rejected_reward_P),
    }


# Implicit rewards: ``[P]``


def divergence_reward(side: Side, knobs: PairLossConfig) -> Tensor:
    """beta f'(u) with u = pi / pi_ref, up to a constant that cancels in a pair.

    reverse_kl: log u          forward_kl: -1/u          js: log(u / (1 + u))          alpha: (1 - u^-alpha) / alpha

    By hand, u = 2 and beta 1: 0.693147, -0.5, log(2/3) = -0.405465, and for alpha 0.5 (1 - 2^-0.5) / 0.5 = 0.585786.

    Source: Wang et al. 2023 (f-DPO), table 1 and theorem 1.
    """
    log_u_P = side.log_ratio(knobs.length_normalised)
    return knobs.beta * _DIVERGENCES[knobs.divergence](log_u_P, knobs.alpha)


def _inverse_power(log_u_P: Tensor, power: float) -> Tensor:
    return (-power * log_u_P).clamp(max=LARGEST_EXPONENT).exp()


_DIVERGENCES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "reverse_kl": lambda log_u_P, alpha: log_u_P,
    "forward_kl": lambda log_u_P, alpha: -_inverse_power(log_u_P, 1.0),
    "js": lambda log_u_P, alpha: F.logsigmoid(log_u_P),
    "alpha": lambda log_u_P, alpha: (1 - _inverse_power(log_u_P, alpha)) / alpha,
}


def mean_logp_reward(side: Side, knobs: PairLossConfig) -> Tensor:
    """beta / len(y) log pi(y), without a reference. Source: Meng et al. 2024 (SimPO), equation 4."""
    return knobs.beta * side.mean_logp()


def log_odds(side: Side, knobs: PairLossConfig) -> Tensor:
    """log (p / (1 - p)), p = pi(y)^(1 / len(y)): the odds of the average token. Source: Hong et al. 2024 (ORPO), equations 3 and 4.

    By hand: logp = 2 log 0.25 over two tokens: log (0.25 / 0.75) = -1.098612.
    """
    # A probability that rounds to 1 has no finite odds.
    mean_P = side.mean_logp().clamp(max=-torch.finfo(torch.float32).eps)
    return mean_P - torch.log(-torch.expm1(mean_P))


# Losses of a pair: ``[P]``, from the difference ``z_P`` of its rewards


def sigmoid_loss(z_P: Tensor, chosen: Side, knobs: PairLossConfig) -> Tensor:
    """-log sigmoid(z): the Bradley-Terry likelihood of the label."""
    return -F.logsigmoid(z_P)


def conservative_loss(z_P: Tensor, chosen: Side, knobs: PairLossConfig) -> Tensor:
    """-(1 - e) log sigmoid(z) - e log sigmoid(-z): the label is right with probability 1 - e; least at z = log((1 - e) / e).

    By hand, z = 1 and e = 0.1: 0.9 * 0.313262 + 0.1 * 1.313262 = 0.413262. Source: Mitchell 2023, "A note on DPO with noisy preferences".
    """
    e = knobs.label_smoothing
    return -(1 - e) * F.logsigmoid(z_P) - e * F.logsigmoid(-z_P)


def robust_loss(z_P: Tensor, chosen: Side, knobs: PairLossConfig) -> Tensor:
    """[-(1 - e) log sigmoid(z) + e log sigmoid(-z)] / (1 - 2e): its mean over labels flipped with probability e is DPO's on true labels.

    By hand, z = 1 and e = 0.1: (0.9 * 0.313262 - 0.1 * 1.313262) / 0.8 = 0.188262. Source: Chowdhury et al. 2024 (rDPO).
    """
    e = knobs.label_smoothing
    return (-(1 - e) * F.logsigmoid(z_P) + e * F.logsigmoid(-z_P)) / (1 - 2 * e)


def ipo_loss(z_P: Tensor, chosen: Side, knobs: PairLossConfig) -> Tensor:
    """(h - 1 / (2 beta))^2 with the difference h = z / beta of the log-ratios: it stops widening at a gap of 1 / (2 beta) nats.

    The log-ratios are those of whole completions, as the paper writes them; ``length_normalised`` takes means per token, as TRL does.
    By hand, h = 1 and beta 0.1: (1 - 5)^2 = 16. Source: Azar et al. 2023, equation 17.
    """
    return (z_P / knobs.beta - 1 / (2 * knobs.beta)) ** 2


def simpo_loss(z_P: Tensor, chosen: Side, knobs: PairLossConfig) -> Tensor:
    """-log sigmoid(z - gamma).

    By hand: logp = (-1, -4) over 1 and 2 tokens, beta 2, gamma 1: z = -2 + 4 = 2, loss = log(1 + e^-1) = 0.313262.
    Source: Meng et al. 2024, equation 6.
    """
    return -F.logsigmoid(z_P - knobs.target_margin)


def orpo_loss(z_P: Tensor, chosen: Side, knobs: PairLossConfig) -> Tensor:
    """-1/len(y_w) log pi(y_w) - beta log sigmoid(z), z the difference of log-odds: imitation and the odds ratio in one.

    By hand: tokens of probability 0.5 and 0.25, beta 0.1: log 2 + 0.1 log(1 + 1/3) = 0.721915.
    Source: Hong et al. 2024, equations 6 and 7, the likelihood as a mean over the tokens of each completion.
    """
    return -chosen.mean_logp() - knobs.beta * F.logsigmoid(z_P)


Reward = Callable[[Side, PairLossConfig], Tensor]
PairLoss = Callable[[Tensor, Side, PairLossConfig], Tensor]

_METHODS: dict[str, tuple[Reward, PairLoss]] = {
    "sigmoid": (divergence_reward, sigmoid_loss),
    "conservative": (divergence_reward, conservative_loss),
    "robust": (divergence_reward, robust_loss),
    "ipo": (divergence_reward, ipo_loss),
    "simpo": (mean_logp_reward, simpo_loss),
    "orpo": (log_odds, orpo_loss),
}
