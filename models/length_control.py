"""What is left of a gain when answers are no longer than before."""

from collections.abc import Sequence

import numpy as np

from data.intervals import Interval

_DRAWS_AT_ONCE = 500


def length_controlled_gain(gains: Sequence[float], tokens: Sequence[float], *, seed: int, n: int) -> Interval:
    """The gain that a line through (difference in tokens, gain) has at a difference of 0, with its 95 % bootstrap interval over prompts.

    gain_i = a + b tokens_i by least squares; a = mean(gain) - b mean(tokens), b = cov(gain, tokens) / var(tokens), b = 0 without variance.
    A reward that pays for length alone has a = 0, however large the gain. After the regression of length-controlled AlpacaEval
    (Dubois et al. 2024, section 3), with the line in place of the logistic curve, since gains need not be probabilities.

    By hand: gains (2, 4), tokens (1, 2): b = 2, a = 0. Gains (3, 5): a = 1.
    """
    gain, length = np.asarray(gains, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    generator = np.random.default_rng(seed)
    found = []
    for start in range(0, n, _DRAWS_AT_ONCE):
        drawn = generator.integers(len(gain), size=(min(_DRAWS_AT_ONCE, n - start), len(gain)))
        found.append(_intercepts(gain[drawn], length[drawn]))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975])
    return Interval(float(_intercepts(gain[None], length[None])[0]), float(low), float(high))


def _intercepts(gain: np.ndarray, length: np.ndarray) -> np.ndarray:
    centred = length - length.mean(axis=1, keepdims=True)
    variance = (centred**2).sum(axis=1)
    covariance = (centred * gain).sum(axis=1)
    slope = np.divide(covariance, variance, out=np.zeros_like(covariance), where=variance > 0)
    return gain.mean(axis=1) - slope * length.mean(axis=1)
