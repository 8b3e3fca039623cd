"""Intervals for what is measured on held-out prompts: how sure a mean, a difference or a share is.

All bootstraps draw by ``draws_of``: the same seed draws the same items, whatever the statistic.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

_LEVEL = 0.95
_Z = 1.959963984540054  # the normal quantile of that level
_VALUES_AT_ONCE = 1_000_000  # bounds memory: draws times items, eight bytes each


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the ends of its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """True where zero lies outside the interval."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(
    a: Sequence[float], b: Sequence[float] | None = None, *, seed: int, n: int = 10_000, level: float = _LEVEL
) -> Interval:
    """95 % percentile bootstrap interval of mean(a), or of mean(a - b) where both were measured on the same prompts.

    Prompts are drawn with replacement, ``n`` times; a and b keep their pairing, so that what makes a prompt hard cancels
    (Efron and Tibshirani 1993, section 13.3; Koehn 2004 for paired system comparison). ``level``: another than 95 %, where one of several
    differences was chosen by its size.

    Raises:
        ValueError: no value, lengths that differ, or a value that is not finite.
    """
    values = np.asarray(a, dtype=np.float64)
    if b is not None:
        other = np.asarray(b, dtype=np.float64)
        if values.shape != other.shape:
            raise ValueError(f"paired values need the same prompts: got {len(values)} and {len(other)}")
        values = values - other
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"an interval needs at least one finite value a prompt, got {values[:8]} ({values.size} values)")
    return percentile_interval(float(values.mean()), _resampled_means(values, seed, n), level)


def bootstrap_p_value(values: Sequence[float], *, seed: int, n: int = 10_000) -> float:
    """Two-sided p-value of a mean of zero, from the draws of ``paired_bootstrap``: below 0.05 where its interval excludes zero.

    p = 2 min(1 + draws <= 0, 1 + draws >= 0) / (n + 1), at most 1 (Efron and Tibshirani 1993, section 15.4; the ones as in Davison and
    Hinkley 1997, section 4.2.3). By hand: values that are all above zero have p = 2 / (n + 1), values that are all zero p = 1.
    """
    means = _resampled_means(np.asarray(values, dtype=np.float64), seed, n)
    return min(1.0, 2 * (1 + min(int((means <= 0).sum()), int((means >= 0).sum()))) / (n + 1))


def holm(p_values: Mapping[str, float]) -> set[str]:
    """The names whose p-values stay significant when all are looked at together: family-wise error of at most 5 % (Holm 1979).

    In ascending order p_k must be at most 0.05 / (m - k), k from 0; the first that is not ends it.
    By hand: of 0.01, 0.03, 0.04 only the first, since 0.03 > 0.05 / 2.
    """
    kept: set[str] = set()
    for k, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        if p_values[name] > (1 - _LEVEL) / (len(p_values) - k):
            break
        kept.add(name)
    return kept


def _resampled_means(values: np.ndarray, seed: int, n: int) -> np.ndarray:
    return np.concatenate([values[drawn].mean(axis=1) for drawn in draws_of(len(values), seed, n)])


def ratio_bootstrap(numerators: Sequence[float], denominators: Sequence[float], *, seed: int, n: int = 10_000) -> Interval:
    """95 % percentile bootstrap interval of sum(numerators) / sum(denominators), such as nats per token over documents.

    Items are drawn with replacement, each with its numerator and its denominator: a long document weighs as much as it is long, and that
    lengths differ from draw to draw is part of the interval (Efron and Tibshirani 1993, section 10.3, for the ratio).

    By hand: (2, 6) over (1, 2) is 8/3; the draws are 2, 8/3 and 3.

    Raises:
        ValueError: no item, lengths that differ, a value that is not finite, or a denominator that is not positive.
    """
    above, below = np.asarray(numerators, dtype=np.float64), np.asarray(denominators, dtype=np.float64)
    if above.shape != below.shape or above.ndim != 1 or not len(above):
        raise ValueError(f"a ratio needs two values an item, got {above.size} and {below.size}")
    if not np.isfinite(above).all() or not np.isfinite(below).all() or not (below > 0).all():
        raise ValueError(f"a ratio needs finite numerators and positive denominators, got {above[:8]} over {below[:8]}")
    ratios = np.concatenate([above[drawn].sum(axis=1) / below[drawn].sum(axis=1) for drawn in draws_of(len(above), seed, n)])
    return percentile_interval(float(above.sum() / below.sum()), ratios)


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], items: int, *, seed: int, n: int, level: float = _LEVEL) -> Interval:
    """A statistic of weighted items with its percentile interval: for what is neither a mean nor a ratio.

    ``statistic``: of how often each item counts, ``[draws, items]``, to one value a draw; all items once give the middle.
    By hand: of items 1 and 2, the statistic w @ (1, 2) / 2 is their mean, 1.5.
    """
    values = np.concatenate([statistic(weights) for weights in weights_of(items, seed, n)])
    return percentile_interval(float(statistic(np.ones((1, items)))[0]), values, level)


def percentile_interval(value: float, resampled: np.ndarray, level: float = _LEVEL) -> Interval:
    """A value between the quantiles of what its resamples gave."""
    low, high = np.quantile(resampled, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def draws_of(items: int, seed: int, n: int) -> Iterator[np.ndarray]:
    """``n`` draws of ``items`` items with replacement, as many rows at a time as memory is meant for: ``[draws, items]``, item numbers."""
    generator = np.random.default_rng(seed)
    for rows in blocks_of(n, items):
        yield generator.integers(items, size=(rows, items))


def weights_of(items: int, seed: int, n: int) -> Iterator[np.ndarray]:
    """The draws of ``draws_of`` as how often each item was drawn. By hand: drawn (2, 0, 2) of three items is (1, 0, 2)."""
    for drawn in draws_of(items, seed, n):
        rows = len(drawn)
        flat = (drawn + items * np.arange(rows)[:, None]).ravel()
        yield np.bincount(flat, minlength=rows * items).reshape(rows, items).astype(np.float64)


def blocks_of(n: int, items: int) -> Iterator[int]:
    """``n`` draws of so many items, cut into blocks that fit in memory."""
    size = max(1, _VALUES_AT_ONCE // items)
    yield from (min(size, n - start) for start in range(0, n, size))


def wilson(k: int, n: int) -> Interval:
    """Wilson's 95 % interval of a share, k of n: sound near 0 and 1, where the bootstrap has no width (Wilson 1927).

    centre = (p + z^2 / 2n) / (1 + z^2 / n), half-width = z sqrt(p (1 - p) / n + z^2 / 4n^2) / (1 + z^2 / n), p = k / n.

    Raises:
        ValueError: k is not within 0 to n, or n is 0.
    """
    if not 0 <= k <= n or n == 0:
        raise ValueError(f"a share needs 0 <= k <= n and n > 0, got k={k}, n={n}")
    share = k / n
    scale = 1 + _Z**2 / n
    centre = (share + _Z**2 / (2 * n)) / scale
    half = _Z * math.sqrt(share * (1 - share) / n + _Z**2 / (4 * n**2)) / scale
    # Of none and of all the ends are exact; rounding must not put the share itself outside.
    return Interval(share, centre - half if k else 0.0, centre + half if k < n else 1.0)
