"""Measures of a reward model on planted rewards: a taste for length, perfect calibration, a coin; and values by hand."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from data.measures import Measure
from models.reward_measures import Array, JudgedPairs, Knobs, clustered, lengths, margin_by_length, margin_thirds, measures_of

KNOBS = Knobs(bins=10, length_bins=4, resamples=500, seed=0)


def judged(
    margin_P: Sequence[float] | Array,
    p_P: Sequence[float] | Array | None = None,
    length_P: Sequence[float] | Array | None = None,
    members: Mapping[str, Sequence[bool]] | None = None,
    prompts: Sequence[str] | None = None,
) -> JudgedPairs:
    margin = np.asarray(margin_P, dtype=np.float64)
    ids = [f"pair {n}" for n in range(len(margin))]
    p = 1 / (1 + np.exp(-margin)) if p_P is None else np.asarray(p_P, dtype=np.float64)
    length = np.zeros(len(margin)) if length_P is None else np.asarray(length_P, dtype=np.float64)
    return JudgedPairs(ids, prompts or ids, margin, p, length, members or {})


def by_name(pairs: JudgedPairs, knobs: Knobs = KNOBS) -> dict[str, Measure]:
    return {one.name: one for one in measures_of(pairs, knobs)}


# By hand


def test_by_hand():
    """Margins 2, 1, -1, 0 over lengths 200, 0, -100, 100."""
    members = {"source=a": [True, True, False, False]}
    found = by_name(judged([2.0, 1.0, -1.0, 0.0], [0.9, 0.8, 0.3, 0.5], [200.0, 0.0, -100.0, 100.0], members))
    assert found["accuracy"].mean == 0.5, "equal rewards are not right"
    assert found["accuracy/source=a"].mean == 1.0 and set(found["accuracy/source=a"].values) == {"pair 0", "pair 1"}
    assert found["brier"].mean == pytest.approx((0.01 + 0.04 + 0.49 + 0.25) / 4)
    assert found["brier"].better == "lower" and found["brier"].values["pair 2"] == pytest.approx(0.49)
    # lengths less 50: 150, -50, -150, 50; margins less 0.5: 1.5, 0.5, -1.5, -0.5; sums 400 and 50,000
    assert found["length_slope"].mean == pytest.approx(100 * 400 / 50_000)
    assert found["margin_at_equal_length"].mean == pytest.approx(0.5 - 50 * 0.008)
    assert found["length_correlation"].mean == pytest.approx(400 / np.sqrt(50_000 * 5))
    assert found["length_only_accuracy"].mean == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert found["accuracy_over_length"].mean == pytest.approx((0 + 0.5 + 0 - 1) / 4)


def test_the_line_is_that_of_numpy():
    noise = np.random.default_rng(0)
    length_P, margin_P = noise.normal(30, 200, 60), noise.normal(size=60)
    found = by_name(judged(margin_P, length_P=length_P))
    slope, intercept = np.polyfit(length_P, margin_P, 1)
    assert found["length_slope"].mean == pytest.approx(100 * slope)
    assert found["margin_at_equal_length"].mean == pytest.approx(intercept)
    assert found["length_correlation"].mean == pytest.approx(np.corrcoef(length_P, margin_P)[0, 1])


def test_thirds_of_the_margin_by_hand():
    assert margin_thirds([1.0, 2.0, 3.0]) == {
        "margin=lowest third": [True, False, False],
        "margin=middle third": [False, True, False],
        "margin=highest third": [False, False, True],
    }
    assert margin_thirds([0.0, 0.0, 1.0]) == {}, "two margins are no order of magnitude"


@pytest.mark.parametrize("margin_P", [[], [1.0, float("nan")]])
def test_no_pair_or_no_number_is_an_error(margin_P: list[float]):
    with pytest.raises(ValueError, match="held-out pairs, with margins"):
        measures_of(judged(margin_P), KNOBS)


# Planted rewards


def test_a_reward_that_loves_length_is_seen_to():
    noise = np.random.default_rng(1)
    length_P = noise.integers(-80, 100, 300).astype(float)
    found = by_name(judged(length_P / 50, length_P=length_P, members={"length=chosen_shorter": (length_P < 0).tolist()}))
    slope = found["length_slope"]
    assert slope.low > 0 and slope.mean == pytest.approx(2.0)
    assert found["accuracy/length=chosen_shorter"].mean == 0
    assert found["margin_at_equal_length"].mean == pytest.approx(0, abs=1e-9)
    assert found["length_correlation"].mean == pytest.approx(1)
    assert abs(found["accuracy_over_length"].mean) < 0.01, "it knows nothing that counting tokens does not"


def test_a_reward_that_does_not_look_at_length_is_not_blamed():
    """Chosen answers are longer here, and the reward is right; yet within the pairs it does not rise with length."""
    noise = np.random.default_rng(2)
    length_P = noise.normal(60, 50, 400)
    found = by_name(judged(noise.normal(1.0, 1.0, 400), length_P=length_P))
    assert found["length_slope"].low < 0 < found["length_slope"].high
    assert found["margin_at_equal_length"].low > 0.7
    assert found["length_only_accuracy"].mean > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_what_is_right_as_often_as_it_says_is_calibrated(seed: int):
    noise = np.random.default_rng(seed)
    confidence_P = noise.uniform(0.5, 1, 3_000)
    p_P = np.where(noise.random(3_000) < confidence_P, confidence_P, 1 - confidence_P)
    found = by_name(judged(p_P - 0.5, p_P), Knobs(bins=10, length_bins=4, resamples=200, seed=0))
    error, chance = found["calibration_error"], found["calibration_error_by_chance"]
    assert error.mean < 0.04 and error.low <= error.mean <= error.high and error.low < 0.02
    assert error.mean < 1.3 * chance.high


def test_what_is_too_sure_is_not():
    noise = np.random.default_rng(0)
    p_P = np.where(noise.random(1_000) < 0.7, 0.95, 0.05)
    found = by_name(judged(p_P - 0.5, p_P))
    error = found["calibration_error"]
    assert error.low > 0.2 and error.mean == pytest.approx(0.95 - (p_P > 0.5).mean())
    assert found["calibration_error_by_chance"].high < error.low


def test_a_coin_has_a_quarter():
    """That says of every pair that it does not know."""
    found = by_name(judged(np.random.default_rng(0).normal(size=50), np.full(50, 0.5)))
    assert (found["brier"].mean, found["brier"].low, found["brier"].high) == (0.25, 0.25, 0.25)
    assert found["calibration_error"].mean == 0


def test_nothing_is_said_of_length_where_all_are_equal():
    found = by_name(judged([1.0, -1.0, 2.0]))
    assert "length_slope" not in found and "length_correlation" not in found
    assert found["length_only_accuracy"].mean == 0.5


def test_margins_by_length():
    length_P = np.arange(-40.0, 40.0)
    bins = margin_by_length(judged(length_P / 10, length_P=length_P), KNOBS)
    assert [row["pairs"] for row in bins] == [20, 20, 20, 20]
    assert [row["tokens"] for row in bins] == [-30.5, -10.5, 9.5, 29.5]
    assert [row["margin"]["mean"] for row in bins] == pytest.approx([-3.05, -1.05, 0.95, 2.95])
    assert bins[0]["accuracy"] == 0 and bins[3]["accuracy"] == 1 and bins[3]["margin"]["low"] > 2
    assert sum(row["pairs"] for row in margin_by_length(judged(np.ones(5)), KNOBS)) == 5, "one bin where nothing varies"


# Intervals


def test_pairs_of_one_prompt_are_one_observation():
    """Forty copies of ten pairs know no more than the ten."""
    margin_P = np.random.default_rng(0).normal(size=10)

    def mean(weight_DP: Array) -> Array:
        return weight_DP @ np.tile(margin_P, 40) / weight_DP.sum(1)

    prompts = [f"prompt {n % 10}" for n in range(400)]
    together = clustered(prompts, mean, 0, 2_000)
    apart = clustered([str(n) for n in range(400)], mean, 0, 2_000)
    assert together is not None and apart is not None
    assert together.high - together.low == pytest.approx(np.sqrt(40) * (apart.high - apart.low), rel=0.15)


def test_the_intervals_hold_what_they_promise():
    """Of 100 sets of 60 pairs with a true slope of 0.5 per 100 tokens about 95 must say so; the deviation of that is 2.2."""
    noise, held = np.random.default_rng(0), 0
    for seed in range(100):
        length_P = noise.normal(0, 100, 60)
        knobs = Knobs(bins=10, length_bins=4, resamples=200, seed=seed)
        slope = lengths(judged(0.005 * length_P + noise.normal(size=60), length_P=length_P), knobs)[0]
        held += slope.low <= 0.5 <= slope.high
    assert 87 <= held <= 100


def test_the_same_seed_gives_the_same_intervals_however_many_are_drawn_at_once(monkeypatch: pytest.MonkeyPatch):
    pairs = judged(np.random.default_rng(0).normal(size=30), length_P=np.random.default_rng(1).normal(size=30))
    whole = measures_of(pairs, KNOBS)
    assert whole == measures_of(pairs, KNOBS)
    monkeypatch.setattr("data.intervals._VALUES_AT_ONCE", 300)
    for one, other in zip(whole, measures_of(pairs, KNOBS), strict=True):
        assert (one.name, one.low) == (other.name, pytest.approx(other.low, abs=1e-12))
