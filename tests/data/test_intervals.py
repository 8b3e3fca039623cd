import math

import numpy as np
import pytest

from data.intervals import Interval, bootstrap, bootstrap_p_value, draws_of, holm, paired_bootstrap, ratio_bootstrap, weights_of, wilson


def test_wilson_against_the_closed_form_by_hand():
    """k=8, n=10, z=1.96: (0.8 + 0.19208 +- 1.96 sqrt(0.016 + 0.009604)) / 1.38416 = 0.4902, 0.9433."""
    interval = wilson(8, 10)
    assert interval.mean == 0.8
    assert (interval.low, interval.high) == (pytest.approx(0.49016, abs=1e-4), pytest.approx(0.94331, abs=1e-4))


def test_wilson_at_the_ends_has_width():
    none, every = wilson(0, 20), wilson(20, 20)
    assert none.low == 0.0 and none.high == pytest.approx(1.959964**2 / (20 + 1.959964**2), abs=1e-6)
    assert every.high == 1.0 and every.low == pytest.approx(1 - none.high)


def test_wilson_holds_its_own_share_whatever_the_rounding():
    for n in range(1, 200):
        assert wilson(0, n).low == 0.0 and wilson(n, n).high == 1.0 and not wilson(0, n).excludes_zero


@pytest.mark.parametrize(("k", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_wilson_refuses_what_is_no_share(k, n):
    with pytest.raises(ValueError, match=f"k={k}, n={n}"):
        wilson(k, n)


def test_the_bootstrap_of_a_mean_is_near_the_normal_interval():
    values = np.random.default_rng(0).normal(0.3, 1.0, size=400)
    interval = paired_bootstrap(values.tolist(), seed=1)
    half = 1.96 * values.std() / math.sqrt(400)
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_pairing_removes_what_the_prompts_share():
    generator = np.random.default_rng(0)
    hard = generator.normal(0, 10, size=100)
    a, b = hard + 0.5 + generator.normal(0, 0.1, 100), hard + generator.normal(0, 0.1, 100)
    paired = paired_bootstrap(a.tolist(), b.tolist(), seed=1)
    assert paired.excludes_zero and paired.low == pytest.approx(0.5, abs=0.1)
    assert not paired_bootstrap((a - b[::-1]).tolist(), seed=1).excludes_zero


def test_a_seed_gives_one_interval():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert paired_bootstrap(values, seed=3) == paired_bootstrap(values, seed=3)
    continuous = np.random.default_rng(0).normal(size=50).tolist()
    assert paired_bootstrap(continuous, seed=3) != paired_bootstrap(continuous, seed=4)


def test_the_bootstrap_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(5)
    covered = 0
    for trial in range(300):
        a, b = generator.random(60) < 0.6, generator.random(60) < 0.4
        interval = paired_bootstrap(a.astype(float).tolist(), b.astype(float).tolist(), seed=trial, n=400)
        covered += interval.low <= 0.2 <= interval.high
    assert 0.90 <= covered / 300 <= 0.98


@pytest.mark.parametrize(
    ("a", "b", "match"),
    [([], None, "at least one"), ([1.0], [1.0, 2.0], "got 1 and 2"), ([1.0, float("nan")], None, "finite"), ([[1.0]], None, "one finite")],
)
def test_the_bootstrap_refuses_what_it_cannot_resample(a, b, match):
    with pytest.raises(ValueError, match=match):
        paired_bootstrap(a, b, seed=0)


def test_excludes_zero():
    assert Interval(1, 0.1, 2).excludes_zero and Interval(-1, -2, -0.1).excludes_zero
    assert not Interval(0.5, 0.0, 1).excludes_zero


def test_the_bootstrap_of_a_ratio_by_hand():
    """(2, 6) over (1, 2): 8 over 3; of the draws the least is 2/1 and the most 6/2."""
    found = ratio_bootstrap([2.0, 6.0], [1.0, 2.0], seed=0, n=400)
    assert (found.mean, found.low, found.high) == (pytest.approx(8 / 3), 2.0, 3.0)


def test_the_bootstrap_of_a_ratio_is_near_the_delta_method():
    """With lengths that go with the values the interval is narrower than with lengths taken as fixed."""
    noise = np.random.default_rng(0)
    lengths = noise.integers(10, 200, 500).astype(float)
    values = lengths * noise.normal(2.0, 0.2, 500)
    found = ratio_bootstrap(values.tolist(), lengths.tolist(), seed=1)
    ratio = values.sum() / lengths.sum()
    width = 1.96 * np.sqrt(((values - ratio * lengths) ** 2).sum()) / lengths.sum()
    assert (found.high - found.low) / 2 == pytest.approx(width, rel=0.08)
    assert paired_bootstrap((values / lengths.mean()).tolist(), seed=1).high - ratio > 3 * (found.high - ratio)


@pytest.mark.parametrize(
    ("above", "below", "match"),
    [([], [], "got 0 and 0"), ([1.0], [1.0, 2.0], "got 1 and 2"), ([1.0], [0.0], "positive"), ([math.nan], [1.0], "finite")],
)
def test_no_ratio_of_nothing(above, below, match):
    with pytest.raises(ValueError, match=match):
        ratio_bootstrap(above, below, seed=0)


def test_a_p_value_by_hand():
    assert bootstrap_p_value([0.1, 0.2, 0.3], seed=0, n=199) == 2 / 200, "no draw at or below zero"
    assert bootstrap_p_value([0.0, 0.0], seed=0, n=199) == 1.0
    assert bootstrap_p_value([-1.0, 1.0], seed=0, n=199) > 0.5


def test_the_p_value_agrees_with_the_interval():
    generator = np.random.default_rng(3)
    for shift in (0.0, 0.1, 0.2, 0.3):
        values = list(generator.normal(shift, 1, size=100))
        assert paired_bootstrap(values, seed=1, n=2000).excludes_zero == (bootstrap_p_value(values, seed=1, n=2000) < 0.05)


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.03, "c": 0.04}) == {"a"}, "0.03 is above 0.05 / 2"
    assert holm({"a": 0.01, "b": 0.02, "c": 0.04}) == {"a", "b", "c"}
    assert holm({"a": 0.02, "b": 0.02, "c": 0.02}) == set(), "none is below 0.05 / 3, though each is below 0.05"
    assert holm({}) == set()


def test_weights_are_how_often_each_item_was_drawn(monkeypatch: pytest.MonkeyPatch):
    drawn, weights = (np.concatenate(list(made(3, 1, 40))) for made in (draws_of, weights_of))
    assert [np.bincount(row, minlength=3).tolist() for row in drawn] == weights.tolist()
    monkeypatch.setattr("data.intervals._VALUES_AT_ONCE", 10)
    assert len(list(draws_of(3, 1, 40))) == 14 and np.array_equal(np.concatenate(list(draws_of(3, 1, 40))), drawn)


def test_a_statistic_of_weights_has_the_draws_of_a_mean():
    values = np.random.default_rng(0).normal(size=30)
    found = bootstrap(lambda weights: weights @ values / len(values), 30, seed=4, n=300, level=0.9)
    expected = paired_bootstrap(values.tolist(), seed=4, n=300, level=0.9)
    assert (found.mean, found.low, found.high) == pytest.approx((expected.mean, expected.low, expected.high))
