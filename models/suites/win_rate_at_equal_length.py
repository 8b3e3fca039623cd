"""A win rate at equal length: what is left of it when the longer answer is no longer an advantage.

Wins are yes or no, so the curve is logistic. What is left of a mean gain, in the gain's own units, is the straight line of
``models.length_control``: the two numbers answer the same question of different data and are not to be compared.

Axes: ``B`` bootstrap resamples, ``n`` items.
"""

import math
from collections.abc import Sequence

import numpy as np

from data.intervals import Interval, bootstrap

RIDGE = 0.01  # keeps both coefficients finite where one side wins always, or the longer one always does
_STEPS, _LONGEST_STEP, _CLOSE = 60, 2.0, 1e-9


def win_rate_at_equal_length(wins: Sequence[float], difference_tokens: Sequence[float], *, seed: int, resamples: int) -> Interval:
    """The probability of winning at equal length, with its 95 % percentile bootstrap interval over items.

    P(win) = sigmoid(theta + phi tanh(d / s)), d the own answer's tokens minus the other's, s the standard deviation of d; a tie counts as
    half a win and half a loss. Fitted by maximum likelihood less RIDGE / 2 (theta^2 + phi^2); the result is sigmoid(theta).

    Simplified from the paper: one reference and one policy are known, so that there is no term for the difficulty of each instruction,
    which is estimated there from many models; verdicts are win, tie and loss, not the judge's probabilities; and a fixed weak ridge takes
    the place of a cross-validated one and of the special treatment of short answers.

    By hand: without a difference in length 3 wins of 4 give sigmoid(theta) with 4 (3/4 - sigmoid(theta)) = 0.01 theta: 0.7473.

    Raises:
        ValueError: no item, lengths that differ, or a value that is not finite or no share.

    Source: Dubois et al. 2024, "Length-Controlled AlpacaEval", equation 2.
    """
    y_n, d_n = np.asarray(wins, dtype=np.float64), np.asarray(difference_tokens, dtype=np.float64)
    if not len(y_n) or y_n.shape != d_n.shape or not np.isfinite(d_n).all() or not ((y_n >= 0) & (y_n <= 1)).all():
        raise ValueError(f"length control needs as many wins in [0, 1] as finite length differences, got {len(y_n)} and {len(d_n)}")
    return bootstrap(lambda weight_Bn: _at_equal_length(y_n, d_n, weight_Bn), len(y_n), seed=seed, n=resamples)


def _at_equal_length(y_n: np.ndarray, d_n: np.ndarray, weight_Bn: np.ndarray) -> np.ndarray:
    """sigmoid(theta) of the fit under each row of weights, ``[B]``, by Newton's method with steps of bounded length."""
    total_B = weight_Bn.sum(1)
    mean_B = weight_Bn @ d_n / total_B
    deviation_B = np.sqrt(np.maximum(weight_Bn @ d_n**2 / total_B - mean_B**2, 0))
    x_Bn = np.tanh(d_n / np.where(deviation_B > 0, deviation_B, math.inf)[:, None])
    theta_B, phi_B = np.zeros(len(weight_Bn)), np.zeros(len(weight_Bn))
    for _ in range(_STEPS):
        p_Bn = _sigmoid(theta_B[:, None] + phi_B[:, None] * x_Bn)
        error_Bn, curve_Bn = weight_Bn * (y_n - p_Bn), weight_Bn * p_Bn * (1 - p_Bn)
        slope_B, slope_x_B = error_Bn.sum(1) - RIDGE * theta_B, (error_Bn * x_Bn).sum(1) - RIDGE * phi_B
        a_B, b_B, c_B = curve_Bn.sum(1) + RIDGE, (curve_Bn * x_Bn).sum(1), (curve_Bn * x_Bn**2).sum(1) + RIDGE
        determinant_B = a_B * c_B - b_B**2
        step_B = np.stack([c_B * slope_B - b_B * slope_x_B, a_B * slope_x_B - b_B * slope_B]) / determinant_B
        step_B *= np.minimum(1, _LONGEST_STEP / np.maximum(np.abs(step_B).max(0), _CLOSE))
        theta_B, phi_B = theta_B + step_B[0], phi_B + step_B[1]
        if np.abs(step_B).max() < _CLOSE:
            break
    return _sigmoid(theta_B)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))
