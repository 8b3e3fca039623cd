"""Planted curves: the hack is named and its stopping point found, the honest run is left alone, and no form is fitted where none fits."""

import math

import numpy as np
import pytest

from models.overoptimisation_curve import Curve, fit, points, standardised, verdict

PROMPTS = 80


def curve(
    score: list[float] | None, reward: list[float], held_out: list[float] | None = None, prompts: int = PROMPTS, seed: int = 0
) -> Curve:
    """Means that are planted, with noise of deviation 0.3 about them that each prompt has in common and noise of its own."""
    noise = np.random.default_rng(seed)
    own_P = noise.normal(0, 0.3, prompts)

    def planted(means: list[float] | None) -> np.ndarray | None:
        return None if means is None else np.array(means)[:, None] + own_P + noise.normal(0, 0.3, (len(means), prompts))

    reward_KP = planted(reward)
    assert reward_KP is not None
    kl_KP = np.repeat(np.arange(len(reward), dtype=float)[:, None] ** 2, prompts, axis=1)  # sqrt KL is the number of the point
    steps = [10 * k for k in range(len(reward))]
    return Curve(steps, kl_KP, reward_KP, planted(held_out), planted(score), seed=seed, resamples=1000)


RISING = [0.0, 0.5, 1.0, 1.5, 2.0]
HACKED = [0.3, 0.7, 1.0, 0.6, 0.2]
HONEST = [0.3, 0.6, 0.9, 1.2, 1.5]


def test_a_hack_is_named_with_the_step_to_stop_at() -> None:
    said = verdict(curve(HACKED, RISING))
    assert said.overoptimised and said.recommended_step == 20
    assert said.message.startswith("Over-optimised: from step 20 to step 40 the verifier's score changed by -0.")
    assert said.message.endswith("Stop at step 20.") and "the reward trained on is +2." in said.message


def test_an_honest_run_is_not() -> None:
    said = verdict(curve(HONEST, RISING))
    assert not said.overoptimised and said.recommended_step == 40
    assert said.message.startswith("No sign of over-optimisation: the verifier's score is best at the end, +1.")
    assert "within chance" in verdict(curve([0.3] * 3 + [0.33], RISING[:4])).message


def test_the_held_out_reward_judges_where_there_is_no_verifier() -> None:
    hacked = verdict(curve(None, RISING, HACKED))
    assert hacked.overoptimised and hacked.recommended_step == 20 and "the held-out reward" in hacked.message
    assert not verdict(curve(HONEST, RISING, HACKED)).overoptimised, "the verifier knows better"
    nobody = verdict(curve(None, RISING))
    assert (nobody.recommended_step, nobody.overoptimised) == (None, False) and "nobody can tell" in nobody.message


def test_a_policy_that_only_got_worse_is_harmed_and_not_over_optimised() -> None:
    said = verdict(curve(HACKED, [0.0, 0.0, 0.0, 0.0, 0.0]))
    assert not said.overoptimised and said.recommended_step == 20 and "but harm" in said.message
    fell_together = verdict(curve(HACKED, [0.0, 1.0, 2.0, 1.0, 0.5]))
    assert not fell_together.overoptimised and "but harm" in fell_together.message
    saturated = verdict(curve(HACKED, [0.0, 1.0, 2.0, 2.0, 2.0]))
    assert saturated.overoptimised, "a reward that can rise no further was risen on all the same"


def test_training_that_never_helped_recommends_the_reference() -> None:
    said = verdict(curve([0.9, 0.6, 0.4, 0.2, 0.0], RISING))
    assert said.overoptimised and said.recommended_step == 0


def test_a_point_as_good_for_less_kl_is_told() -> None:
    said = verdict(curve([0.3, 1.0, 1.02, 0.6, 0.2], RISING))
    assert said.recommended_step in (10, 20)
    if said.recommended_step == 20:
        assert "Step 10 is not significantly worse, at a KL of 1.00 instead of 4.00 nats." in said.message
    assert "not significantly worse" not in verdict(curve(HACKED, RISING)).message


def test_few_prompts_accuse_nobody() -> None:
    said = verdict(curve(HACKED, RISING, prompts=9))
    assert not said.overoptimised and "9 prompts are too few to tell a fall from chance: take at least 10" in said.message


def test_runs_without_a_fall_are_rarely_accused() -> None:
    """The best of five points is chosen by its noise, and must not be held against the last for that."""
    accused = [verdict(curve([0.5] * 6, [0.5 * k for k in range(6)], seed=seed)).overoptimised for seed in range(100)]
    assert sum(accused) <= 5


# Numbers


def test_rewards_are_in_deviations_of_the_reference() -> None:
    answers = np.array([[1.0, 3.0], [6.0, 6.0]])
    assert standardised(answers, answers).tolist() == [[-1.0, 1.0], [4.0, 4.0]]
    flat = np.array([[1.0, 1.0], [1.0, 5.0]])
    assert standardised(flat, flat).tolist() == [[0.0, 0.0], [0.0, 4 / math.sqrt(3)]], "deviation of 1, 1, 1, 5"
    same = np.ones((2, 2))
    assert standardised(same, same).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_points_have_intervals_paired_with_the_reference() -> None:
    own = curve(HACKED, RISING)
    first, *_, last = points(own)
    assert first["reward"] == {"mean": 0.0, "low": 0.0, "high": 0.0} and first["sqrt_kl"] == 0.0
    assert last["step"] == 40 and last["kl_nats"] == 16.0 and last["sqrt_kl"] == 4.0 and last["held_out_reward"] is None
    assert last["reward"]["low"] < 2.0 < last["reward"]["high"]
    width = last["reward"]["high"] - last["reward"]["low"]
    assert width == pytest.approx(2 * 1.96 * 0.3 * math.sqrt(2 / PROMPTS), rel=0.3), "what a prompt has in common cancels"
    assert first["score"]["mean"] == pytest.approx(0.3, abs=0.15) and first["score"]["low"] < first["score"]["high"]


def exactly(form: str, alpha: float, beta: float) -> Curve:
    d_K = np.arange(6, dtype=float)
    gain_K = [d * (alpha - beta * (math.log(d) if form == "reinforcement" else d)) if d else 0.0 for d in d_K]
    value_KP = np.repeat(np.array(gain_K)[:, None], 20, axis=1)
    return Curve(list(range(6)), np.repeat(d_K[:, None] ** 2, 20, axis=1), value_KP, None, None, seed=0, resamples=1000)


@pytest.mark.parametrize(
    ("form", "alpha", "beta", "peak"),
    [
        ("reinforcement", 1.0, 0.5, math.exp(1)),  # exp(alpha / beta - 1)
        ("best_of_n", 2.0, 0.5, 2.0),  # alpha / (2 beta)
        ("reinforcement", 1.0, 0.1, None),  # exp(9) is far beyond what was measured
        ("best_of_n", 1.0, -0.2, None),  # it goes up only
    ],
)
def test_a_curve_of_the_form_gives_its_coefficients_back(form: str, alpha: float, beta: float, peak: float | None) -> None:
    own = exactly(form, alpha, beta)
    found = fit(own, own.reward_KP, form)
    assert isinstance(found, dict) and found["form"] == form
    assert found["alpha"] == pytest.approx({"mean": alpha, "low": alpha, "high": alpha})
    assert found["beta"] == pytest.approx({"mean": beta, "low": beta, "high": beta})
    assert found["explained"] == pytest.approx(1.0) and found["peak_sqrt_kl"] == pytest.approx(peak)


def test_the_coefficients_have_the_width_of_their_noise() -> None:
    own = curve(None, RISING)
    found = fit(own, own.reward_KP, "best_of_n")
    assert isinstance(found, dict)
    assert found["alpha"]["low"] < 0.5 < found["alpha"]["high"] and found["beta"]["low"] < 0 < found["beta"]["high"]


def test_no_fit_where_it_would_not_be_honest() -> None:
    few = curve(HACKED[:4], RISING[:4])
    assert fit(few, few.reward_KP, "reinforcement") == "3 points with a KL above 0 are too few for two coefficients: at least 4"
    zigzag = curve([0.0, 1.0, -1.0, 1.0, -1.0, 1.0], [0.0] * 6)
    assert zigzag.score_KP is not None
    refused = fit(zigzag, zigzag.score_KP, "reinforcement")
    assert isinstance(refused, str) and "the curve has another shape" in refused
