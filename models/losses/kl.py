"""Estimates of KL(pi || ref) from tokens that pi sampled, token by token.

The log-ratio is log r = log ref - log pi. All are 0 where the two agree. What an estimate is worth depends on where it stands: inside
the reward only k1 gives the gradient of the KL; inside the loss, differentiated, k2 gives it exactly, k3 approximately, and k1 not at
all (its gradient is E[grad log pi] = 0).

Source: Schulman 2020, "Approximating KL divergence".
"""

from collections.abc import Callable

from torch import Tensor


def k1(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """-log r = logp - ref_logp: unbiased, of either sign.

    By hand: logp = log 0.5, ref = log 0.25: log 2 = 0.693147.
    """
    return logp - ref_logp


def k2(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """1/2 (log r)^2: never negative, biased, of little variance.

    By hand: logp = log 0.5, ref = log 0.25: 1/2 (log 2)^2 = 0.240227.
    """
    return 0.5 * (ref_logp - logp) ** 2


def k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """r - log r - 1: never negative, unbiased.

    By hand: logp = log 0.5, ref = log 0.25: 0.5 - log 0.5 - 1 = 0.193147.

    Source: Shao et al. 2024 (DeepSeekMath), equation 4.
    """
    gap = ref_logp - logp
    return gap.exp() - gap - 1


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
