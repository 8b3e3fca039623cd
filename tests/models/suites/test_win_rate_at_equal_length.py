"""The win rate at equal length: by hand, against other solvers, and where it matters."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

from models.suites.win_rate_at_equal_length import RIDGE, win_rate_at_equal_length


def fitted(wins, gaps) -> float:
    return win_rate_at_equal_length(wins, gaps, seed=0, resamples=10).mean


def planted(effect_of_length: float, effect_of_policy: float, count: int = 1500, longer: float = 60.0):
    """Wins of a policy that is longer by ``longer`` tokens on the mean, and the differences."""
    noise = np.random.default_rng(3)
    gaps = noise.normal(longer, 60, count)
    chance = 1 / (1 + np.exp(-effect_of_policy - effect_of_length * np.tanh(gaps / gaps.std())))
    return (noise.random(count) < chance).astype(float), gaps


def test_by_hand_without_a_difference_in_length():
    """4 (3/4 - p) = RIDGE logit(p)."""
    p = fitted([1, 1, 1, 0], [0, 0, 0, 0])
    assert 4 * (0.75 - p) == pytest.approx(RIDGE * math.log(p / (1 - p)), abs=1e-9)
    assert p == pytest.approx(0.7473, abs=1e-4)


def test_two_other_solvers_find_the_same():
    wins, gaps = planted(1.2, 0.3, count=200)
    wins[:20] = 0.5
    x = np.tanh(gaps / gaps.std())

    def loss(beta):
        z = beta[0] + beta[1] * x
        return np.sum(np.logaddexp(0, z) - wins * z) + RIDGE / 2 * np.sum(beta**2)

    best = minimize(loss, [0, 0], method="BFGS", options={"gtol": 1e-7}).x
    assert fitted(wins, gaps) == pytest.approx(1 / (1 + math.exp(-best[0])), abs=1e-6)
    model = LogisticRegression(C=1e6).fit(np.tile(x, 2)[:, None], np.repeat([1, 0], len(x)), np.concatenate([wins, 1 - wins]))
    assert fitted(wins, gaps) == pytest.approx(1 / (1 + math.exp(-model.intercept_[0])), abs=1e-3)


def test_a_policy_that_wins_only_by_length_is_seen_through():
    wins, gaps = planted(effect_of_length=4.0, effect_of_policy=0.0)
    found = win_rate_at_equal_length(wins, gaps, seed=1, resamples=300)
    assert wins.mean() > 0.75
    assert found.low < 0.5 < found.high and abs(found.mean - 0.5) < 0.07


def test_a_policy_that_wins_at_equal_length_keeps_its_rate():
    wins, gaps = planted(effect_of_length=0.0, effect_of_policy=1.5, longer=0.0)
    found = win_rate_at_equal_length(wins, gaps, seed=1, resamples=300)
    assert wins.mean() > 0.75 and found.low > 0.75 and abs(found.mean - wins.mean()) < 0.02


def test_sides_exchanged_the_rate_is_the_rest():
    wins, gaps = planted(1.0, 0.5, count=300)
    assert fitted(wins, gaps) + fitted(1 - wins, -gaps) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("gaps", [[5.0] * 30, list(range(-10, 20)), [0.0] * 30], ids=["always longer", "both", "equal"])
def test_one_side_that_always_wins_has_a_finite_fit(gaps):
    found = win_rate_at_equal_length([1.0] * 30, gaps, seed=0, resamples=100)
    assert 0.7 < found.low <= found.mean <= found.high < 1


def test_winning_exactly_where_longer_is_worth_nothing():
    """Separable: without the ridge there would be no fit."""
    gaps = [gap for gap in range(-20, 21) if gap]
    assert fitted([float(gap > 0) for gap in gaps], gaps) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(("wins", "gaps"), [([], []), ([1], [1, 2]), ([2], [0]), ([math.nan], [0]), ([1], [math.inf])])
def test_what_cannot_be_fitted_is_refused(wins, gaps):
    with pytest.raises(ValueError, match="length control needs"):
        win_rate_at_equal_length(wins, gaps, seed=0, resamples=100)
