import itertools
import json

import pytest

from data.reasoning import freeze, score, task_entries, thaw

EASY = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}
CLEAN = ["chain_sum", "gcd", "count_bits", "letter_counting", "basic_arithmetic", "rearc", "spell_backward", "number_sorting"]


def first(task, n=5, seed=1, **parameters):
    return list(itertools.islice(task_entries(task, parameters, seed=seed), n))


def test_a_stream_is_a_function_of_its_seed():
    assert first("chain_sum", 20, **EASY) == first("chain_sum", 20, **EASY)
    assert first("chain_sum", 20, **EASY) != first("chain_sum", 20, seed=2**20, **EASY)


def test_parameters_reach_the_task():
    assert {entry["metadata"]["num_terms"] for entry in first("chain_sum", 40, **EASY)} == {2, 3}


@pytest.mark.parametrize("task", CLEAN)
def test_a_task_scores_its_own_answer_after_a_trip_through_json(task):
    """Some scorers tell tuples from lists: metadata must come back as it was."""
    for entry in first(task, 2):
        metadata = json.loads(json.dumps(freeze(entry["metadata"])))
        assert thaw(metadata) == entry["metadata"]
        assert score(task, entry["answer"], question=entry["question"], expected=entry["answer"], metadata=metadata) == 1.0
        assert score(task, "wrong", question=entry["question"], expected=entry["answer"], metadata=metadata) < 0.99


def test_freeze_keeps_what_json_loses():
    value = {"a": (1, [2, (3,)]), "b": {1: "x", (2, 3): "y"}, "c": None}
    assert thaw(json.loads(json.dumps(freeze(value)))) == value


@pytest.mark.parametrize(
    ("task", "parameters", "match"),
    [
        ("chain_sm", {}, "unknown reasoning-gym task 'chain_sm'; did you mean chain_sum"),
        ("acre", {}, "not reliable"),
        ("chain_sum", {"terms": 3}, "no parameter 'terms'; it takes allow_negation, max_digits"),
        ("chain_sum", {"size": 3}, "no parameter 'size'"),
        ("chain_sum", {"min_terms": 0}, "refuses.*min_terms"),
        ("chain_sum", {"min_terms": "two"}, "refuses"),
    ],
)
def test_a_wrong_task_says_what_is_right(task, parameters, match):
    with pytest.raises(ValueError, match=match):
        first(task, 1, **parameters)
