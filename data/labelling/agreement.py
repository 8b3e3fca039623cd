"""How far annotators agree: raw, Cohen's kappa, Krippendorff's alpha, with bootstrap intervals over items.

An item of K completions is K (K - 1) / 2 comparisons; the value of one is who won, first, neither or second (nominal scale), or how clearly
(ordinal scale: the five grades of a pair; of a ranking again who won). Items are drawn with replacement, since comparisons of one item
hang together.

Axes: ``I`` items, ``C`` values of the scale (rows and columns of a table).
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data.intervals import Interval, percentile_interval, weights_of
from data.labelling.records import Given

Table = NDArray[np.float64]
Unit = Mapping[str, int]  # annotator -> value, of one comparison
SIGNS = 3  # second, neither, first
GRADES = 5  # WORSE to BETTER

_LEAST_SHARE = 0.5  # of the resamples must have a value, or there is no interval


def signs(given: Sequence[Given]) -> dict[str, list[dict[str, int]]]:
    """For each item its comparisons, as who won: 0 the second completion, 1 neither, 2 the first."""
    return _units(given, lambda row, i, j: 1 + int(np.sign(row.ranks[j] - row.ranks[i])))


def grades(given: Sequence[Given]) -> dict[str, list[dict[str, int]]]:
    """For each item its comparisons on the scale 0 (second clearly better) to 4; a ranking says 0, 2 or 4."""

    def value(row: Given, i: int, j: int) -> int:
        return 2 + (row.grade if row.grade else 2 * int(np.sign(row.ranks[j] - row.ranks[i])))

    return _units(given, value)


def _units(given: Sequence[Given], value: Callable[[Given, int, int], int]) -> dict[str, list[dict[str, int]]]:
    units: dict[str, dict[tuple[int, int], dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for row in given:
        for i, j in itertools.combinations(range(len(row.ranks)), 2):
            units[row.item][i, j][row.annotator] = value(row, i, j)
    return {item: list(pairs.values()) for item, pairs in units.items()}


# Krippendorff's alpha


def coincidences(units: Sequence[Unit], values: int) -> Table:
    """Coincidence table ``[C, C]``: each pair of values of one comparison, by two annotators, counts 1 / (m - 1) where m judged it."""
    table = np.zeros((values, values))
    for unit in units:
        for a, b in itertools.permutations(unit.values(), 2):
            table[a, b] += 1 / (len(unit) - 1)
    return table


def alpha(coincidence_CC: Table, scale: str) -> float:
    """Krippendorff's alpha of a coincidence table; nan where nobody shared a comparison or only one value was used.

    alpha = 1 - (n - 1) sum o_ck d_ck^2 / sum n_c n_k d_ck^2, with n_c the sum of row c and n the whole. Nominal: d^2 = 1 for c != k.
    Ordinal: d_ck^2 = (sum of n_g for g from c to k - (n_c + n_k) / 2)^2 (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability).
    """
    count_C = coincidence_CC.sum(axis=1)
    distance_CC = 1 - np.eye(len(count_C)) if scale == "nominal" else _ordinal(count_C)
    expected = float(count_C @ distance_CC @ count_C)
    if expected == 0:
        return math.nan
    return 1 - (count_C.sum() - 1) * float((coincidence_CC * distance_CC).sum()) / expected


def _ordinal(count_C: NDArray[np.float64]) -> Table:
    before = np.concatenate([[0.0], np.cumsum(count_C)])
    c, k = np.indices((len(count_C), len(count_C)))
    low, high = np.minimum(c, k), np.maximum(c, k)
    between = before[high + 1] - before[low] - (count_C[c] + count_C[k]) / 2
    return np.where(c == k, 0.0, between**2)


# Two annotators


def confusion(units: Sequence[Unit], first: str, second: str, values: int = SIGNS) -> Table:
    """Table ``[C, C]`` of comparisons that both judged: row what the first said, column what the second said."""
    table = np.zeros((values, values))
    for unit in units:
        if first in unit and second in unit:
            table[unit[first], unit[second]] += 1
    return table


def observed(table_CC: Table) -> float:
    """Share of a table on its diagonal: raw agreement. nan for an empty one."""
    return float(np.trace(table_CC) / table_CC.sum()) if table_CC.sum() else math.nan


def kappa(confusion_CC: Table) -> float:
    """Cohen's kappa, (p_o - p_e) / (1 - p_e); nan where it has no value (Cohen 1960).

    By hand: [[20, 5], [10, 15]]: p_o = 35/50 = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5, kappa = 0.4.
    """
    n = confusion_CC.sum()
    chance = float(confusion_CC.sum(axis=1) @ confusion_CC.sum(axis=0)) / n**2 if n else 1.0
    return math.nan if chance == 1 else (observed(confusion_CC) - chance) / (1 - chance)


# Intervals


def over_items(tables: Sequence[Table], statistic: Callable[[Table], float], *, seed: int, n: int) -> Interval | None:
    """A statistic of the sum of the items' tables with its 95 % percentile bootstrap interval; None where it has no value."""
    table_ICC = np.asarray([table for table in tables if table.sum()])
    value = statistic(table_ICC.sum(axis=0)) if len(table_ICC) else math.nan
    if math.isnan(value):
        return None
    drawn = (times_I for times_DI in weights_of(len(table_ICC), seed, n) for times_I in times_DI)
    values = np.asarray([statistic((times_I[:, None, None] * table_ICC).sum(axis=0)) for times_I in drawn])
    values = values[~np.isnan(values)]
    if len(values) < _LEAST_SHARE * n:
        return Interval(value, math.nan, math.nan)
    return percentile_interval(value, values)
