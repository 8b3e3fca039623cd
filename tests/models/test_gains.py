"""Gains over the baseline, their marks, and the metrics that they become, by hand."""

import functools
from typing import Any

import pytest

from data.measures import Measure, Suite
from models.comparison import Findings, compared
from models.configs.evaluation import ComparisonConfig
from models.gains import gain_of, mark_all, paired_values, suite_table
from models.policy_metrics import cost_metrics, policy_metrics

CONFIG = ComparisonConfig(baseline="base", resamples=200)
GAIN = functools.partial(gain_of, seed=0, resamples=200)


def rows(scores: list[float], first: int = 0, **more: Any) -> list[dict[str, Any]]:
    """One sampled answer a prompt."""
    known = {"n_tokens": 3, "finished": True, "kl_nats": 0.5}
    answers = [{"text": f"t{i}{s}", "score": s, "correct": s == 1, **known, **more} for i, s in enumerate(scores)]
    return [{"id": f"p{first + i}", "prompt": "q", "sampled": [answer]} for i, answer in enumerate(answers)]


def gain(p: float, low: float = 0.1) -> dict[str, Any]:
    return {"mean": 0.2, "low": low, "high": 0.3, "p": p}


def test_one_of_many_is_marked_once_and_what_withstands_holm_twice():
    gains = {name: {"accuracy": gain(p)} for name, p in {"a": 0.001, "b": 0.04, "c": 0.04}.items()}
    gains["d"] = {"accuracy": gain(0.5, low=-0.1)}
    mark_all(gains)
    assert {name: own["accuracy"]["mark"] for name, own in gains.items()} == {"a": "**", "b": "*", "c": "*", "d": ""}


def test_a_quantity_that_an_answer_lacks_is_not_paired():
    assert paired_values(rows([1.0, 0.0]), "reward", "accuracy") is None
    assert paired_values(rows([1.0, 0.0]), "correct", "accuracy") == [1.0, 0.0]


def test_a_suite_has_gains_where_the_items_are_the_same():
    def suite(values: dict[str, float]) -> dict[str, Suite]:
        return {"ifeval": Suite("ifeval", "instructions", [Measure("accuracy", sum(values.values()) / len(values), 0, 1, values=values)])}

    suites = {"base": suite({"a": 0, "b": 0}), "own": suite({"b": 1, "a": 1}), "other": suite({"x": 1, "b": 1})}
    (entry,) = suite_table(suites, "base", GAIN)
    found = entry["measures"][0]["policies"]
    assert found["own"]["gain"]["mean"] == 1.0 and found["base"]["gain"] is None and found["other"]["gain"] is None
    assert entry["notes"] == ["accuracy: other and base were measured on different items, so they are not paired."]


def test_a_stranger_is_shown_and_not_paired():
    answers = {"base": rows([0.0, 1.0]), "own": rows([1.0, 1.0]), "stranger": rows([1.0, 1.0], first=1)}
    content = compared(CONFIG, answers, Findings(), seed=0)
    by_name = {row["policy"]: row for row in content["rows"]}
    assert by_name["stranger"]["accuracy"]["mean"] == 1.0 and by_name["stranger"]["accuracy_gain"] is None
    assert by_name["stranger"]["win_rate"] is None and set(content["gains"]) == {"own"}
    assert "stranger answered 2 prompts, of which 1 are among the 2 of base: they are not paired" in content["notes"][0]
    assert by_name["own"]["accuracy_gain"]["mean"] == 0.5


def test_what_may_not_be_paired_has_no_gain():
    answers = {"base": rows([0.0, 1.0], reward=1.0), "own": rows([1.0, 1.0], reward=3.0)}
    content = compared(CONFIG, answers, Findings(), 0, {"own": ["reward", "win_rate"]})
    assert set(content["gains"]["own"]) == {"accuracy", "kl_nats", "n_tokens"} and content["rows"][1]["win_rate"] is None
    assert set(compared(CONFIG, answers, Findings(), 0)["gains"]["own"]) >= {"reward", "win_rate"}


def test_metrics_by_hand():
    answers = {"base": rows([0.0, 1.0]), "own": rows([1.0, 1.0])}
    suites = {"own": {"mc": Suite("mc", "multiple_choice", [Measure("accuracy", 0.75, 0.5, float("nan"))])}}
    behaviour = {"policies": {"own": {"measures": [{"name": "entropy", "mean": 1.5}], "findings": [{"severity": "hack"}]}}}
    content = compared(CONFIG, answers, Findings(suites, behaviour), seed=0)
    own = policy_metrics(content)["own"]
    assert (own["eval/accuracy"], own["eval/accuracy_gain"], own["eval/win_rate"], own["eval/kl_nats"]) == (1.0, 0.5, 0.75, 0.5)
    assert (own["eval/distinct"], own["eval/completion_tokens"]) == (1.0, 3.0), "a share, as evaluate reports it"
    assert (own["suite/mc/accuracy"], own["suite/mc/accuracy_low"]) == (0.75, 0.5) and "suite/mc/accuracy_high" not in own
    assert (own["behaviour/entropy"], own["behaviour/hacks"]) == (1.5, 1.0)
    assert own["eval/accuracy_low"] == content["rows"][1]["accuracy"]["low"]


def test_a_greedy_primary_accuracy_keeps_its_own_name():
    found = policy_metrics({"primary": "accuracy_greedy", "rows": [{"policy": "a", "accuracy": {"mean": 0.5, "low": 0.1, "high": 0.9}}]})
    assert found == {"a": {"eval/accuracy_greedy": 0.5, "eval/accuracy_greedy_low": 0.1, "eval/accuracy_greedy_high": 0.9}}


def test_costs_as_metrics():
    cost = {"seconds": 2.0, "trained_tokens": 10, "generated_tokens": 5, "peak_bytes": 2**29, "device_peak_bytes": 0}
    assert cost_metrics(cost) == pytest.approx({"cost/seconds": 2.0, "cost/tokens": 15.0, "cost/peak_gib": 0.5})
    assert cost_metrics({}) == {}
