"""What is left of a mean gain when answers are no longer than before: a straight line, in the gain's own units.

Win rates of pairs are bounded and have the logistic curve of ``models.suites.win_rate_at_equal_length`` instead.
"""

from collections.abc import Sequence

import numpy as np

from data.intervals import Interval, draws_of, percentile_interval


def length_controlled_gain(gains: Sequence[float], tokens: Sequence[float], *, seed: int, n: int) -> Interval:
    """The gain that a line through (difference in tokens, gain) has at a difference of 0, with its 95 % bootstrap interval over prompts.

    gain_i = a + b tokens_i by least squares; a = mean(gain) - b mean(tokens), b = cov(gain, tokens) / var(tokens), b = 0 without variance.
    A reward that pays for length alone has a = 0, however large the gain. After the regression of length-controlled AlpacaEval
    (Dubois et al. 2024, section 3), with the line in place of the logistic curve, since gains need not be probabilities.

    By hand: gains (2, 4), tokens (1, 2): b = 2, a = 0. Gains (3, 5): a = 1.
    """
    gain, length = np.asarray(gains, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    found = [_intercepts(gain[drawn], length[drawn]) for drawn in draws_of(len(gain), seed, n)]
    return percentile_interval(float(_intercepts(gain[None], length[None])[0]), np.concatenate(found))


def _intercepts(gain: np.ndarray, length: np.ndarray) -> np.ndarray:
    centred = length - length.mean(axis=1, keepdims=True)
    variance = (centred**2).sum(axis=1)
    covariance = (centred * gain).sum(axis=1)
    slope = np.divide(covariance, variance, out=np.zeros_like(covariance), where=variance > 0)
    return gain.mean(axis=1) - slope * length.mean(axis=1)
