"""What is measured of a reward model on held-out pairs: accuracy by subset, calibration, and its taste for length, each with an interval.

Pairs of one prompt hang together: the bootstrap draws prompts, not pairs.

Axes: ``P`` pairs, ``N`` prompts, ``B`` bins, ``D`` bootstrap draws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.intervals import Interval, blocks_of, paired_bootstrap, percentile_interval, weights_of
from data.measures import Better, Measure, rate
from models.calibration import binned
from models.seeds import derive_seed

Array = NDArray[np.float64]
TOKENS = 100  # the length that a slope is told of


@dataclass(frozen=True)
class JudgedPairs:
    """Held-out pairs as a reward model sees them; the first completion is the chosen one.

    ``length_P``: tokens of the chosen completion less those of the rejected one. ``members``: which pairs are in which subset.
    """

    ids: Sequence[str]
    prompts: Sequence[str]
    margin_P: Array
    p_P: Array
    length_P: Array
    members: Mapping[str, Sequence[bool]]


@dataclass(frozen=True)
class Knobs:
    """How measures are made."""

    bins: int
    length_bins: int
    resamples: int
    seed: int


def measures_of(judged: JudgedPairs, knobs: Knobs) -> list[Measure]:
    """Every measure of a reward model on held-out pairs.

    Raises:
        ValueError: a reward is not finite.
    """
    if not len(judged.ids) or not np.isfinite(judged.margin_P).all():
        raise ValueError(f"{len(judged.ids)} held-out pairs, with margins {judged.margin_P[:8]}: the model is damaged, or there is no pair")
    return [*accuracies(judged), *calibrations(judged, knobs), *lengths(judged, knobs)]


# Accuracy


def accuracies(judged: JudgedPairs) -> list[Measure]:
    """Share of pairs whose chosen side has the higher reward: of all, and by subset. Equal rewards are not right."""
    right = {name: float(margin > 0) for name, margin in zip(judged.ids, judged.margin_P, strict=True)}
    found = [rate("accuracy", right)]
    for subset, member in judged.members.items():
        found.append(rate(f"accuracy/{subset}", {name: right[name] for name, inside in zip(judged.ids, member, strict=True) if inside}))
    return found


def margin_thirds(given_P: Sequence[float]) -> dict[str, list[bool]]:
    """Pairs by how much better their judge found the chosen side: the lowest third, the middle, the highest. Empty where it did not say.

    By hand: (1, 2, 3) is one in each; (0, 0, 1) has two margins only, and nothing is cut.
    """
    if len(set(given_P)) < 3:
        return {}
    low, high = np.quantile(given_P, [1 / 3, 2 / 3])
    thirds = {
        "margin=lowest third": [value <= low for value in given_P],
        "margin=middle third": [low < value <= high for value in given_P],
        "margin=highest third": [value > high for value in given_P],
    }
    return {name: member for name, member in thirds.items() if any(member)}


# Calibration


def calibrations(judged: JudgedPairs, knobs: Knobs) -> list[Measure]:
    """Brier score, expected calibration error, and the error that a calibrated model of the same confidences would show by chance."""
    error_P = (1 - judged.p_P) ** 2
    brier = clustered(judged.prompts, lambda w: w @ error_P / w.sum(1), derive_seed(knobs.seed, "brier"), knobs.resamples)
    assert brier is not None
    values = dict(zip(judged.ids, error_P.tolist(), strict=True))
    return [
        Measure("brier", brier.mean, brier.low, brier.high, "lower", values),
        _measure("calibration_error", calibration_error(judged, knobs), "lower"),
        _measure("calibration_error_by_chance", chance_error(judged, knobs), "neither"),
    ]


def calibration_error(judged: JudgedPairs, knobs: Knobs) -> Interval:
    """Expected calibration error with the basic bootstrap interval, 2 ECE - (97.5 %, 2.5 % quantiles), within 0 and 1.

    The error of few pairs is too high by chance, and that of their resamples higher again, by about as much: the quantiles themselves could
    lie above what was measured. Reflecting them takes that off (Davison and Hinkley 1997, section 5.2).
    """
    gap_PB = _gaps(judged, knobs.bins)

    def statistic(weight_DP: Array) -> Array:
        return np.abs(weight_DP @ gap_PB).sum(1) / weight_DP.sum(1)

    found = clustered(judged.prompts, statistic, derive_seed(knobs.seed, "calibration"), knobs.resamples)
    assert found is not None
    low, high = (float(np.clip(2 * found.mean - end, 0, 1)) for end in (found.high, found.low))
    return Interval(found.mean, min(low, found.mean), max(high, found.mean))


def chance_error(judged: JudgedPairs, knobs: Knobs) -> Interval:
    """What the calibration error would be if every confidence were true: mean and 95 % range over pairs made right with that probability.

    A measured error within the range says nothing against the model.

    Source: Broecker and Smith 2007, consistency resampling.
    """
    confidence_P, _, bin_P = (part.numpy() for part in binned(torch.from_numpy(judged.p_P), knobs.bins))
    inside_PB = np.eye(knobs.bins)[bin_P]
    noise = np.random.default_rng(derive_seed(knobs.seed, "chance"))
    errors = []
    for draws in blocks_of(knobs.resamples, len(confidence_P)):
        right_DP = noise.random((draws, len(confidence_P))) < confidence_P
        errors.append(np.abs((right_DP - confidence_P) @ inside_PB).sum(1) / len(confidence_P))
    error_D = np.concatenate(errors)
    return percentile_interval(float(error_D.mean()), error_D)


def _gaps(judged: JudgedPairs, bins: int) -> Array:
    confidence_P, right_P, bin_P = (part.numpy() for part in binned(torch.from_numpy(judged.p_P), bins))
    return np.eye(bins)[bin_P] * (right_P - confidence_P)[:, None]


# Length


def lengths(judged: JudgedPairs, knobs: Knobs) -> list[Measure]:
    """How the margin hangs on length, and what a judge that only counts tokens would get right.

    length_slope: of the least-squares line of margin over length difference, reward per 100 tokens, so that a model without a taste for
    length has 0 whatever its accuracy. margin_at_equal_length: its intercept, what the model says of the chosen side when length is no
    help. length_correlation: Pearson's. length_only_accuracy: share of pairs whose chosen side is the longer, equal lengths half.
    accuracy_over_length: accuracy less that, pair by pair.
    """
    seed, n = derive_seed(knobs.seed, "length"), knobs.resamples
    found: list[tuple[str, Interval | None, Better]] = [
        ("length_slope", clustered(judged.prompts, lambda w: TOKENS * _line(judged, w)[0], seed, n), "neither"),
        ("margin_at_equal_length", clustered(judged.prompts, lambda w: _line(judged, w)[1], seed, n), "higher"),
        ("length_correlation", clustered(judged.prompts, lambda w: _line(judged, w)[2], seed, n), "neither"),
    ]
    longer_P = (1 + np.sign(judged.length_P)) / 2
    over_P = (judged.margin_P > 0) - longer_P
    measured = [_measure(name, interval, better) for name, interval, better in found if interval is not None]
    shares: list[tuple[str, Array, Better]] = [("length_only_accuracy", longer_P, "neither"), ("accuracy_over_length", over_P, "higher")]
    for name, values_P, better in shares:
        interval = clustered(judged.prompts, lambda w, values_P=values_P: w @ values_P / w.sum(1), seed, n)
        assert interval is not None
        values = dict(zip(judged.ids, values_P.tolist(), strict=True))
        measured.append(Measure(name, interval.mean, interval.low, interval.high, better, values))
    return measured


def _line(judged: JudgedPairs, weight_DP: Array) -> tuple[Array, Array, Array]:
    """Slope (a token), intercept and correlation of margin over length difference, of weighted pairs; nan where nothing varies."""
    total_D = weight_DP.sum(1)
    x_P, y_P = judged.length_P, judged.margin_P

    def mean(values_P: Array) -> Array:
        return weight_DP @ values_P / total_D

    at_x, at_y = x_P.mean(), y_P.mean()  # centred first: squares of lengths are large
    dx_P, dy_P = x_P - at_x, y_P - at_y
    mean_x, mean_y = mean(dx_P), mean(dy_P)
    covariance = mean(dx_P * dy_P) - mean_x * mean_y
    variance_x, variance_y = mean(dx_P**2) - mean_x**2, mean(dy_P**2) - mean_y**2
    least = 1e-12
    with np.errstate(divide="ignore", invalid="ignore"):
        slope = np.where(variance_x > least, covariance / variance_x, np.nan)
        correlation = np.where((variance_x > least) & (variance_y > least), covariance / np.sqrt(variance_x * variance_y), np.nan)
    return slope, mean_y + at_y - slope * (mean_x + at_x), correlation


def margin_by_length(judged: JudgedPairs, knobs: Knobs) -> list[dict[str, Any]]:
    """Mean margin and accuracy in bins of length difference that hold as many pairs each: what the plot shows."""
    edges = np.unique(np.quantile(judged.length_P, np.linspace(0, 1, knobs.length_bins + 1)[1:-1]))
    bin_P = np.searchsorted(edges, judged.length_P, side="left")
    rows = []
    for number in sorted(set(bin_P.tolist())):
        inside_P = bin_P == number
        own, margins = judged.length_P[inside_P], judged.margin_P[inside_P]
        margin = paired_bootstrap(margins.tolist(), seed=derive_seed(knobs.seed, "bin", number), n=knobs.resamples)
        row = {"tokens_low": float(own.min()), "tokens_high": float(own.max()), "tokens": float(own.mean())}
        rows.append(row | {"margin": asdict(margin), "accuracy": float((margins > 0).mean()), "pairs": int(inside_P.sum())})
    return rows


# Intervals


def clustered(prompts: Sequence[str], statistic: Callable[[Array], Array], seed: int, n: int) -> Interval | None:
    """A statistic of weighted pairs, ``[D, P]`` to ``[D]``, with its 95 % percentile bootstrap interval over prompts.

    None where it has no value. All pairs of a prompt are drawn together (Davison and Hinkley 1997, section 3.8).
    """
    value = float(statistic(np.ones((1, len(prompts))))[0])
    values = np.concatenate([statistic(weight_DP) for weight_DP in _weights(prompts, seed, n)])
    values = values[np.isfinite(values)]
    if not np.isfinite(value) or len(values) < n / 2:
        return None
    return percentile_interval(value, values)


def _weights(prompts: Sequence[str], seed: int, n: int) -> Iterator[Array]:
    """How often each pair is drawn, some draws at a time: ``[D, P]``."""
    names, prompt_P = np.unique(np.asarray(prompts), return_inverse=True)
    for weight_DN in weights_of(len(names), seed, n):
        yield weight_DN[:, prompt_P]


def _measure(name: str, interval: Interval, better: Better) -> Measure:
    return Measure(name, interval.mean, interval.low, interval.high, better)
