"""Quantities of suites, by hand."""

import math
from pathlib import Path

import pytest

from data.intervals import wilson
from data.measures import Measure, Suite, broken_down, gain, mean, metric_name, metrics_of, rate, ratio, read_suite, share, write_suite


def test_a_rate_has_wilsons_interval_and_takes_nothing_else():
    found = rate("accuracy", {"a": 1.0, "b": 0.0, "c": 1.0})
    expected = wilson(2, 3)
    assert (found.mean, found.low, found.high) == (expected.mean, expected.low, expected.high)
    with pytest.raises(ValueError, match=r"item b has 0\.5"):
        rate("accuracy", {"a": 1.0, "b": 0.5})


def test_a_gain_is_paired_by_item_whatever_the_order():
    """Every item gains exactly 1, so the interval has no width; unpaired it would be wide."""
    own = mean("score", {"a": 1.0, "b": 11.0, "c": 21.0}, seed=0, resamples=200)
    before = mean("score", {"c": 20.0, "a": 0.0, "b": 10.0}, seed=0, resamples=200)
    found = gain(own, before, seed=0, resamples=200)
    assert found is not None and (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)
    assert own.high - own.low > 5
    with pytest.raises(ValueError, match="same data"):
        gain(own, mean("score", {"a": 0.0}, seed=0, resamples=100), seed=0, resamples=100)
    assert gain(own, Measure("score", 1.0, 0.0, 2.0), seed=0, resamples=100) is None


def test_a_suite_comes_back_as_it_was_written(tmp_path: Path):
    measures = [rate("accuracy", {"a": 1.0}), Measure("perplexity", math.inf, 1.0, 2.0, "lower")]
    suite = Suite("x", "verifiable", measures, [{"id": "a"}], ["n"])
    write_suite(tmp_path, suite)
    assert read_suite(tmp_path) == suite
    named = {name.removeprefix("suite/") for name in metrics_of(suite)}
    assert named == {"accuracy", "accuracy_low", "accuracy_high", "perplexity_low", "perplexity_high"}


def test_a_share_is_never_sure_for_want_of_spread():
    """All right: the bootstrap has no width, Wilson's interval has."""
    sure = share("pass", {"a": 1.0, "b": 1.0}, seed=0, resamples=100)
    assert (sure.mean, sure.high) == (1.0, 1.0) and sure.low < 0.5
    mixed = share("pass", {"a": 0.5, "b": 1.0}, seed=0, resamples=100)
    assert (mixed.mean, mixed.low, mixed.high) == (0.75, 0.5, 1.0)


def test_a_ratio_weighs_items_by_their_second_part():
    found = ratio("nats", {"a": (2.0, 1.0), "b": (6.0, 2.0)}, seed=0, resamples=400)
    assert (found.mean, found.low, found.high) == (pytest.approx(8 / 3), 2.0, 3.0)
    assert found.values == {"a": pytest.approx(4 / 3), "b": 4.0}
    other = ratio("nats", {"b": (4.0, 2.0), "a": (1.0, 1.0)}, seed=0, resamples=400)
    change = gain(found, other, seed=0, resamples=400)
    assert change is not None and change.mean == pytest.approx(1.0)


def test_shares_by_label():
    labels = {"a": {"task": "x", "difficulty": "1"}, "b": {"task": "y"}, "c": {"task": "x"}}
    found = broken_down("accuracy", {"a": 1.0, "b": 0.0, "c": 0.0}, labels, seed=0, resamples=100)
    means = {measure.name: (measure.mean, len(measure.values)) for measure in found}
    assert means == {
        "accuracy": (pytest.approx(1 / 3), 3),
        "accuracy/difficulty=1": (1.0, 1),
        "accuracy/task=x": (0.5, 2),
        "accuracy/task=y": (0.0, 1),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("suite/accuracy", "suite/accuracy"),
        ("suite/accuracy/task=chain_sum", "suite/accuracy/task:chain_sum"),
        ("accuracy/source=/tmp/a (b).jsonl", "accuracy/source:_tmp_a _b_.jsonl"),
        ("acc@8/x=1=2", "acc_8/x:1:2"),
        ("/a//../b/.", "_/a/_/_/b/_"),
        ("task/filter=größe 3", "task/filter:größe 3"),
    ],
)
def test_names_of_metrics(name: str, expected: str):
    assert metric_name(name) == expected


def test_long_names_are_cut_and_stay_apart():
    one, other = (metric_name("suite/accuracy/subset=" + "x" * 300 + end) for end in "ab")
    assert one != other and len(one) == len(other) == 240 and one.startswith("suite/accuracy/subset:xxx")
