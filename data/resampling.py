"""Bootstrap over prompts for what is no mean of one value a prompt: slopes, ratios, what is left of a gain after control.

Axes: ``P`` prompts, ``R`` resamples, ``K`` sums that a statistic is made of; ``...`` is nothing (all prompts once) or ``R``.
"""

from collections.abc import Callable

import numpy as np

from data.intervals import Interval, percentile_interval, weights_of

_TINY = 1e-12

Statistic = Callable[[np.ndarray], np.ndarray]


class Resamples:
    """The same draws of prompts for every statistic, so that differences between policies stay paired.

    The draws are those of ``data.intervals``, kept. A statistic is a function of sums over prompts, which a resample weighs by how often
    each prompt was drawn: no data is copied (Efron and Tibshirani 1993, chapter 6).
    """

    def __init__(self, prompts: int, *, seed: int, n: int) -> None:
        if prompts < 1:
            raise ValueError("a bootstrap needs at least one prompt, got none")
        self.seed, self.n = seed, n
        self.count_RP = np.concatenate([counts.astype(np.float32) for counts in weights_of(prompts, seed, n)])

    def draws(self, sums_PK: np.ndarray, statistic: Statistic) -> np.ndarray:
        """The statistic in every resample: ``[R]``."""
        return statistic(self.count_RP.astype(np.float64) @ sums_PK)

    def interval(self, sums_PK: np.ndarray, statistic: Statistic, level: float = 0.95) -> Interval:
        """The statistic of all prompts with the percentile interval of ``level``. By hand: of a constant, that constant thrice."""
        return percentile_interval(float(statistic(sums_PK.sum(0))), self.draws(sums_PK, statistic), level)

    def mean(self, value_P: np.ndarray, level: float = 0.95) -> Interval:
        """Of the mean of one value a prompt."""
        return self.interval(np.stack([value_P, np.ones(len(value_P))], 1), ratio, level)


def ratio(sums: np.ndarray) -> np.ndarray:
    """First sum over the second, 0 where that is 0: ``[..., 2]`` to ``[...]``."""
    return sums[..., 0] / np.where(np.abs(sums[..., 1]) > _TINY, sums[..., 1], np.inf)


def slope_sums(prompt_C: np.ndarray, x_C: np.ndarray, y_C: np.ndarray, prompts: int, *, within: bool) -> np.ndarray:
    """What a slope of y on x is made of, by prompt: n, sum x, sum y, sum xx, sum xy: ``[P, 5]``.

    ``within``: of the deviations from the prompt's own means, so that prompts which call for long answers and pay well do not count.
    """
    if within:
        x_C, y_C = (v - by_prompt(prompt_C, v, prompts)[prompt_C] for v in (x_C, y_C))
    columns = (np.ones(len(x_C)), x_C, y_C, x_C * x_C, x_C * y_C)
    return np.stack([np.bincount(prompt_C, column, prompts) for column in columns], 1)


def slope(sums: np.ndarray) -> np.ndarray:
    """Least-squares slope of y on x from ``slope_sums``, 0 where x does not vary. By hand: points (0, 1), (2, 5): 2."""
    n, x, y, xx, xy = np.moveaxis(sums, -1, 0)
    spread = xx - x * x / n
    return (xy - x * y / n) / np.where(spread > _TINY * xx, spread, np.inf)


def by_prompt(prompt_C: np.ndarray, value_C: np.ndarray, prompts: int) -> np.ndarray:
    """Mean over the completions of each prompt: ``[P]``."""
    return np.bincount(prompt_C, value_C, prompts) / np.bincount(prompt_C, minlength=prompts)


def normal_sums(prompt_C: np.ndarray, design_CX: np.ndarray, y_C: np.ndarray, prompts: int) -> np.ndarray:
    """What a regression is made of, by prompt: X'X and X'y flattened: ``[P, X * X + X]``."""
    width = design_CX.shape[1]
    columns = [design_CX[:, i] * design_CX[:, j] for i in range(width) for j in range(width)]
    columns += [design_CX[:, i] * y_C for i in range(width)]
    return np.stack([np.bincount(prompt_C, column, prompts) for column in columns], 1)


def coefficients(sums: np.ndarray, width: int) -> np.ndarray:
    """Least-squares coefficients from ``normal_sums``; those of least length where columns depend on each other: ``[..., X]``."""
    squares = sums[..., : width * width].reshape(*sums.shape[:-1], width, width)
    scale = np.sqrt(np.maximum(np.diagonal(squares, axis1=-2, axis2=-1), _TINY))
    inverse = np.linalg.pinv(squares / scale[..., :, None] / scale[..., None, :], rcond=1e-8, hermitian=True)
    return (inverse @ (sums[..., width * width :] / scale)[..., None])[..., 0] / scale
