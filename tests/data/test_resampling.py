"""The bootstrap over prompts, by hand and against an independent fit."""

import numpy as np
import pytest

from data.intervals import paired_bootstrap
from data.resampling import Resamples, by_prompt, coefficients, normal_sums, ratio, slope, slope_sums

DRAW = np.random.default_rng(0)


def test_a_slope_by_hand():
    """Points (0, 1) and (2, 5): the slope is 2. Where x does not vary there is none."""
    prompt_C = np.array([0, 1])
    assert slope(slope_sums(prompt_C, np.array([0.0, 2.0]), np.array([1.0, 5.0]), 2, within=False).sum(0)) == pytest.approx(2)
    assert slope(slope_sums(prompt_C, np.array([2.0, 2.0]), np.array([1.0, 5.0]), 2, within=False).sum(0)) == 0


def test_within_prompts_the_level_of_a_prompt_does_not_count():
    """Longer is worse within each of two prompts, though the prompt that calls for length pays more."""
    prompt_C, x_C, y_C = np.array([0, 0, 1, 1]), np.array([1.0, 2.0, 11.0, 12.0]), np.array([1.0, 0.0, 9.0, 8.0])
    assert slope(slope_sums(prompt_C, x_C, y_C, 2, within=True).sum(0)) == pytest.approx(-1)
    assert slope(slope_sums(prompt_C, x_C, y_C, 2, within=False).sum(0)) > 0.5


def test_means_by_prompt_and_ratios():
    assert by_prompt(np.array([0, 0, 1]), np.array([1.0, 3.0, 5.0]), 2).tolist() == [2, 5]
    assert ratio(np.array([3.0, 0.0])) == 0 and ratio(np.array([3.0, 2.0])) == 1.5


def test_coefficients_are_those_of_least_squares():
    prompt_C, design_CX = np.repeat(np.arange(20), 3), DRAW.normal(size=(60, 3)) * [1, 100, 0.01]
    y_C = design_CX @ [1.0, -2.0, 3.0] + DRAW.normal(size=60)
    expected = np.linalg.lstsq(design_CX, y_C, rcond=None)[0]
    assert coefficients(normal_sums(prompt_C, design_CX, y_C, 20).sum(0), 3) == pytest.approx(expected, rel=1e-6)


def test_a_column_twice_shares_its_effect():
    x_C = DRAW.normal(size=30)
    design_CX = np.stack([x_C, x_C], 1)
    assert coefficients(normal_sums(np.arange(30), design_CX, 2 * x_C, 30).sum(0), 2) == pytest.approx([1, 1])


def test_an_interval_has_its_level():
    """The mean of 100 standard normal values misses 0 in about one of twenty: Wilson's interval of 400 trials is 2.9 % to 7.2 % there."""
    misses = {0.95: 0, 0.5: 0}
    for trial in range(400):
        resamples = Resamples(100, seed=trial, n=300)
        values = np.random.default_rng(10_000 + trial).normal(size=100)
        for level in misses:
            found = resamples.mean(values, level)
            misses[level] += not found.low <= 0 <= found.high
    assert 8 <= misses[0.95] <= 36 and 160 <= misses[0.5] <= 240


def test_a_constant_has_no_width_and_no_prompt_is_refused():
    found = Resamples(5, seed=0, n=50).mean(np.full(5, 2.0))
    assert (found.mean, found.low, found.high) == (2, 2, 2)
    with pytest.raises(ValueError, match="at least one prompt"):
        Resamples(0, seed=0, n=50)


def test_the_draws_are_those_of_the_other_intervals():
    values = np.random.default_rng(2).normal(size=20)
    found, expected = Resamples(20, seed=3, n=200).mean(values), paired_bootstrap(values.tolist(), seed=3, n=200)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
