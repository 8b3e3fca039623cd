"""Calibration of held-out pairs, on values worked out by hand."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.groups import pair_group
from data.intervals import wilson
from data.packing import Group, pack
from data.records import Preference
from data.tables import read_table
from models.calibration import brier_score, calibration_metrics, expected_calibration_error, judge_probabilities, reliability, subsets
from models.configs.optimisation import OptimConfig
from models.configs.reward_model import RewardModelConfig
from models.heads import load_scalar
from models.run import Run
from models.training import reward_model

SHORT, LONG = [1, 0], [1, 1, 1, 0]


def test_brier_by_hand():
    """(0.04 + 0.36) / 2."""
    assert brier_score(torch.tensor([0.8, 0.4])) == pytest.approx(0.2)
    assert brier_score(torch.full((5,), 0.5)) == 0.25


@pytest.mark.parametrize(
    ("p", "wanted"),
    [
        ([0.9, 0.9, 0.9, 0.1], 0.15),  # confidence 0.9, three of four right
        ([1.0, 1.0], 0.0),
        ([0.0, 0.0], 1.0),  # sure, and wrong
        ([0.5, 0.5], 0.0),  # a coin that says so
        ([0.62, 0.62, 0.38, 0.97], (3 * abs(2 / 3 - 0.62) + 0.03) / 4),
        ([0.75, 0.28], 0.235),  # bins are closed above: 0.75 and 0.72 share one, half right
        ([0.92, 0.98], 0.05),  # two bins: 0.08 and 0.02, half the pairs each
    ],
)
def test_expected_calibration_error_by_hand(p: list[float], wanted: float):
    assert expected_calibration_error(torch.tensor(p, dtype=torch.float64)) == pytest.approx(wanted, abs=1e-12)


def test_reliability_by_hand():
    """Three of four right at confidence 0.9, one right at 1; the bins of the diagram add up to the calibration error."""
    p_P = torch.tensor([0.9, 0.9, 0.9, 0.1, 1.0], dtype=torch.float64)
    low, high = reliability(p_P)
    share = wilson(3, 4)
    assert (low["low"], low["high"], low["pairs"]) == (pytest.approx(0.85), pytest.approx(0.9), 4)
    assert (low["confidence"], low["accuracy"]) == (pytest.approx(0.9), 0.75)
    assert (low["accuracy_low"], low["accuracy_high"]) == (share.low, share.high)
    assert (high["confidence"], high["accuracy"], high["pairs"], high["high"]) == (1.0, 1.0, 1, 1.0)
    noise_P = torch.rand(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    error = sum(row["pairs"] / 300 * abs(row["accuracy"] - row["confidence"]) for row in reliability(noise_P, 7))
    assert error == pytest.approx(expected_calibration_error(noise_P, 7))


def test_expected_calibration_error_against_numpy():
    p_P = torch.rand(500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = p_P.numpy()
    confidence, right = np.maximum(p, 1 - p), p > 0.5
    edges = np.linspace(0.5, 1, 11)
    wanted = 0.0
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(p_P) == pytest.approx(wanted, abs=1e-12)


def test_what_is_drawn_from_its_own_probabilities_is_calibrated():
    noise = torch.Generator().manual_seed(0)
    confidence_P = 0.5 + 0.5 * torch.rand(40_000, generator=noise)
    right_P = torch.rand(40_000, generator=noise) < confidence_P
    assert expected_calibration_error(torch.where(right_P, confidence_P, 1 - confidence_P)) < 0.02
    assert expected_calibration_error(torch.where(right_P, 0.99, 0.01)) > 0.2


def test_subsets_by_source_length_and_margin():
    groups = [Group([5], [LONG, SHORT]), Group([5], [SHORT, LONG]), Group([5], [SHORT, SHORT])]
    assert subsets(groups, [0.5, 0.0, -1.0], ["a", "b", "a"]) == {
        "source:a": [True, False, True],
        "source:b": [False, True, False],
        "length:chosen_longer": [True, False, False],
        "length:chosen_shorter": [False, True, False],
        "length:equal": [False, False, True],
        "margin:positive": [True, False, False],
        "margin:negative": [False, False, True],
        "margin:zero": [False, True, False],
    }
    assert "margin:positive" not in subsets(groups, [0.0, 0.0, 0.0], ["a", "b", "a"])


def test_a_taste_for_length_shows():
    judged = judge_probabilities(
        torch.tensor([0.9, 0.8, 0.3]), {"length:chosen_longer": [True, True, False], "length:chosen_shorter": [False, False, True]}
    )
    metrics = calibration_metrics(judged)
    assert metrics["eval/accuracy"] == pytest.approx(2 / 3) and metrics["eval/pairs"] == 3
    assert (metrics["eval/accuracy_chosen_longer"], metrics["eval/accuracy_chosen_shorter"]) == (1.0, 0.0)
    assert metrics["eval/brier"] == pytest.approx((0.01 + 0.04 + 0.49) / 3)


@pytest.mark.parametrize("p", [[], [0.5, float("nan")]])
def test_no_pair_or_no_number_is_an_error(p: list[float]):
    with pytest.raises(ValueError, match="held-out pairs, with probabilities"):
        judge_probabilities(torch.tensor(p), {})


@torch.no_grad()
def test_the_report_is_of_the_rewards_before_they_are_scaled(
    base: Path, tables: Path, run: Run, tokenizer: Any, read_json: Callable, journal: Callable
):

    with torch.enable_grad():
        config = RewardModelConfig(batch_size=5, optim=OptimConfig(learning_rate=1e-3))
        meta = reward_model.train(config, policy=base, preferences=tables, seed=0, run=run)
    model = load_scalar(run.out)

    pairs = [pair_group(tokenizer, record) for record in read_table(tables / "test_preferences.parquet", Preference)]
    raw_P2 = model.at_ends(pack(pairs)).view(-1, 2)
    report = read_json(run.out / "report.json")
    assert report["brier"] == pytest.approx(brier_score(torch.sigmoid(raw_P2[:, 0] - raw_P2[:, 1])), abs=1e-5)
    assert model.rule.deviation != pytest.approx(1, abs=0.1), "the scale shows"
    assert set(report["subsets"]) == {"source:toy", "length:chosen_longer", "margin:zero", "margin:positive"}
    assert meta["brier"] == report["brier"] == journal(run)[-1][1]["eval/brier"]
    assert json.dumps(meta)
