"""Best-of-n: the estimator by hand and against all subsets, the KL, and the stage from samples to the table."""

import math
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import models.seeds
from data.packing import Group, pack
from data.records import Message, Prompt
from data.tables import write_table
from data.templates import load_tokenizer
from models.best_of_n import best_of_n, kl_of_best, picked_weights, sizes
from models.configs.best_of_n import BestOfNConfig
from models.configs.sampling import SamplingConfig
from models.heads import load_scalar
from models.loading import load_policy
from models.logprobs import token_logps
from models.rewards import score_groups
from models.run import Run

SHORT = SamplingConfig(max_tokens=3)


# The estimator


def test_weights_by_hand():
    """Of three pairs two are won by 3 and one by 2."""
    assert picked_weights([3.0, 1.0, 2.0], 2).tolist() == pytest.approx([2 / 3, 0, 1 / 3])
    assert picked_weights([3.0, 1.0, 2.0], 1).tolist() == pytest.approx([1 / 3] * 3)
    assert picked_weights([3.0, 1.0, 2.0], 3).tolist() == [1, 0, 0]


def test_ties_share():
    """(1, 1, 0), two of three: 1 and 1 tie in one pair, each wins one of the others: half each."""
    assert picked_weights([1.0, 1.0, 0.0], 2).tolist() == pytest.approx([0.5, 0.5, 0.0])
    assert picked_weights([0.5] * 4, 3).tolist() == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("tied", [False, True])
def test_weights_are_those_of_all_subsets(n: int, tied: bool):
    noise = np.random.default_rng(n)
    scores = noise.integers(0, 3, 7).astype(float) if tied else noise.normal(size=7)
    wins = np.zeros(7)
    for subset in combinations(range(7), n):
        best = [i for i in subset if scores[i] == max(scores[j] for j in subset)]
        wins[best] += 1 / len(best)
    found = picked_weights(scores, n)
    np.testing.assert_allclose(found, wins / wins.sum(), atol=1e-12)
    order = noise.permutation(7)
    np.testing.assert_allclose(picked_weights(scores[order], n), found[order], atol=1e-12)


def test_of_right_and_wrong_it_is_pass_at_n():
    """c right of N: 1 - C(N - c, n) / C(N, n)."""
    truth = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    for n in (1, 2, 4, 7):
        assert picked_weights(truth, n) @ truth == pytest.approx(1 - math.comb(6, n) / math.comb(8, n))


def test_the_estimate_is_unbiased():
    """The expected largest of 4 uniform numbers is 4/5, whatever the number of samples."""
    noise = np.random.default_rng(0)
    for samples in (4, 16):
        rows = noise.random((6000, samples))
        assert np.mean([picked_weights(row, 4) @ row for row in rows]) == pytest.approx(0.8, abs=0.01)


@pytest.mark.parametrize("n", [0, 4])
def test_more_than_was_sampled_is_refused(n: int):
    with pytest.raises(ValueError, match=rf"best of {n} cannot be estimated from 3 samples"):
        picked_weights([1.0, 2.0, 3.0], n)


def test_kl_by_hand_and_by_counting():
    """Of three equally likely completions without ties the best of 2 has the masses 1/9, 3/9, 5/9: below the bound."""
    assert (kl_of_best(1), kl_of_best(2)) == (0.0, pytest.approx(0.193147, abs=1e-6))
    cells = 20_000  # nearly continuous
    mass = np.diff((np.arange(cells + 1) / cells) ** 4)
    assert kl_of_best(4) == pytest.approx(float((mass * np.log(mass * cells)).sum()), abs=1e-3)
    assert sum(m * math.log(3 * m) for m in (1 / 9, 3 / 9, 5 / 9)) < kl_of_best(2)
    assert [sizes(n) for n in (2, 6, 8)] == [[1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


# The stage


def test_of_the_bandit_the_curve_is_known(bandit: Path, run: Run, read_json: Callable, journal: Callable, tmp_path: Path):
    """One question, one token: picked by the verifier the best of n is right with probability 1 - (1 - p)^n."""

    write_table(tmp_path / "test_prompts.parquet", [Prompt(f"p{i}", "bandit", (Message("user", "a"),), "b", "exact") for i in range(40)])
    config = BestOfNConfig(pick="verifier", samples=32, sampling=SamplingConfig(max_tokens=1), resamples=200)
    meta = best_of_n(config, policy=bandit, data=tmp_path, seed=0, run=run)
    logp_S, _ = token_logps(load_policy(bandit), pack([Group([1], [[2]])]))
    right = float(logp_S.exp())
    found = read_json(run.out / "best_of_n.json")
    for point in found["curve"]:
        n = point["n"]
        assert point["true_score"]["mean"] == pytest.approx(1 - (1 - right) ** n, abs=0.04)
        assert point["true_score"]["low"] <= point["true_score"]["mean"] <= point["true_score"]["high"]
        assert point["score"] == point["true_score"] == point["oracle_score"]
    assert [step for step, _ in journal(run)] == [1, 2, 4, 8, 16, 32]
    assert journal(run)[1][1]["best_of_n/kl_nats"] == pytest.approx(0.193147, abs=1e-6)
    assert meta["true_score_gain"] == pytest.approx(found["curve"][-1]["true_score"]["mean"] - found["curve"][0]["true_score"]["mean"])
    assert "| 32 | " in (run.out / "best_of_n.md").read_text() and meta["finished"] < 1


def test_the_reward_model_picks_and_the_verifier_measures(base: Path, tables: Path, reward_folder: Path, run: Run, read_json: Callable):
    config = BestOfNConfig(samples=3, sampling=SHORT, resamples=100, missing_eos_penalty=0.25, chunk_prompts=2)
    best_of_n(config, policy=base, data=tables, reward=reward_folder, seed=0, run=run)
    found = read_json(run.out / "best_of_n.json")

    assert len(found["rows"]) == 5 and [p["n"] for p in found["curve"]] == [1, 2, 3]
    kept = [answer for path in sorted(run.checkpoints.glob("sampled-*.json")) for answer in read_json(path)]
    rows = score_groups(load_scalar(reward_folder), [Group(k["prompt"], [s["tokens"] for s in k["samples"]]) for k in kept], 99)
    wanted = [[s - 0.25 * (not a["finished"]) for s, a in zip(row, k["samples"], strict=True)] for row, k in zip(rows, kept, strict=True)]
    assert [[s["score"] for s in row["samples"]] for row in found["rows"]] == [pytest.approx(row, abs=1e-4) for row in wanted]
    best = [max(row["samples"], key=lambda s: s["score"])["true_score"] for row in found["rows"]]
    last = found["curve"][-1]
    assert last["true_score"]["mean"] == pytest.approx(sum(best) / 5)
    assert last["score"]["mean"] == pytest.approx(sum(map(max, wanted)) / 5, abs=1e-4)
    tokenizer = load_tokenizer(base)
    assert found["rows"][0]["samples"][0]["text"] == tokenizer.decode(kept[0]["samples"][0]["tokens"], skip_special_tokens=True)


def length_judge(prompt: Any, text: str) -> float:
    return float(len(text))


def test_a_function_picks_without_a_truth(base: Path, tables: Path, run: Run, read_json: Callable, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(models.seeds, "length_judge", length_judge, raising=False)
    config = BestOfNConfig(pick="callable", judge_callable="models.seeds:length_judge", truth="none", samples=2, sampling=SHORT, prompts=2)
    meta = best_of_n(config, policy=base, data=tables, seed=0, run=run)
    found = read_json(run.out / "best_of_n.json")
    assert all(s["score"] == len(s["text"]) for row in found["rows"] for s in row["samples"])
    assert "true_score" not in found["curve"][0] and "true_score_gain" not in meta and len(found["rows"]) == 2


def wrong_judge(prompt: Any, text: str) -> float:
    return float(text != prompt.answer)


def test_a_scorer_that_is_wrong_makes_the_true_score_fall(
    bandit: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal: Callable
):
    write_table(tmp_path / "test_prompts.parquet", [Prompt(f"p{i}", "bandit", (Message("user", "a"),), "b", "exact") for i in range(8)])
    monkeypatch.setattr(models.seeds, "wrong_judge", wrong_judge, raising=False)
    short = SamplingConfig(max_tokens=1)
    config = BestOfNConfig(pick="callable", judge_callable="models.seeds:wrong_judge", samples=16, sampling=short, resamples=100)
    best_of_n(config, policy=bandit, data=tmp_path, seed=0, run=run)
    curve = [metrics for _, metrics in journal(run)]
    assert curve[0]["best_of_n/true_score"] > 0.1 and curve[-1]["best_of_n/true_score"] == 0.0
    assert curve[-1]["best_of_n/score"] == 1.0 and curve[-1]["best_of_n/oracle_score"] > 0.8
    assert curve[0]["best_of_n/true_score_low"] < curve[0]["best_of_n/true_score"] < curve[0]["best_of_n/true_score_high"]


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"sampling": SamplingConfig(temperature=0)}, "temperature 0 is greedy"),
        ({"pick": "callable"}, "judge_callable '' goes with pick callable"),
        ({"judge_callable": "a:b"}, "judge_callable 'a:b' goes with pick callable"),
        ({"pick": "verifier", "truth": "none"}, "let it be the truth as well"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], fault: str):
    with pytest.raises(ValueError, match=fault):
        BestOfNConfig(**settings)


def test_prompts_without_right_answers_have_no_truth(base: Path, run: Run, tmp_path: Path):
    write_table(tmp_path / "test_prompts.parquet", [Prompt("p9", "toy", (Message("user", "a"),))])
    with pytest.raises(ValueError, match="prompt p9 names no verifier: use truth none, and let a reward model or a function pick"):
        best_of_n(BestOfNConfig(pick="verifier"), policy=base, data=tmp_path, seed=0, run=run)


def test_a_missing_reward_model_is_refused(base: Path, tables: Path, run: Run):
    with pytest.raises(ValueError, match="pick is reward_model and the stage got no reward model"):
        best_of_n(BestOfNConfig(), policy=base, data=tables, seed=0, run=run)
