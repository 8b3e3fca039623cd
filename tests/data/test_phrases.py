"""Phrases whose use exploded, by hand and by the rate of false alarms."""

import numpy as np
import pytest

from data.phrases import _sign_tests, exploded_phrases, frequent_phrases, fullest

PLACES = np.arange(40)
SETTINGS = {"longest": 5, "min_gain": 0.2, "level": 0.001}


def texts(seed: int, count: int = 40, words: int = 20) -> list[list[str]]:
    return np.random.default_rng(seed).choice([*"abcdefghijklmnopqrst"], (count, words)).tolist()


def test_frequent_phrases_by_hand():
    found = frequent_phrases([["a", "b", "a"], ["a", "b"], ["c"]], 3, 2)
    assert {phrase: dict(places) for phrase, places in found.items()} == {
        ("a",): {0: 2, 1: 1},
        ("b",): {0: 1, 1: 1},
        ("a", "b"): {0: 1, 1: 1},
    }


def test_a_sign_test_by_hand():
    """More in 3 of 3 prompts: 1/8; more in 2, less in 1: 4/8; never anything: certain."""
    prompt_C = np.arange(3)
    counts = [(np.array([1.0, 2, 1]), np.zeros(3)), (np.array([1.0, 1, 0]), np.array([0.0, 0, 1])), (np.zeros(3), np.zeros(3))]
    assert _sign_tests(counts, (prompt_C, prompt_C)).tolist() == pytest.approx([1 / 8, 4 / 8, 1])


def test_a_planted_phrase_is_found_as_it_is_said_in_full():
    planted = [[*words, "truly", "an", "expert"] if place % 4 else words for place, words in enumerate(texts(0))]
    found = exploded_phrases(planted, texts(1), (PLACES, PLACES), **SETTINGS)
    assert found and {"truly", "an", "expert"} >= set(found[0].phrase)
    whole = fullest(found, found[-1])
    assert whole.phrase == ("truly", "an", "expert") and (whole.own_share, whole.base_share) == (0.75, 0) and whole.p_corrected < 1e-5


def test_a_phrase_that_both_say_is_none():
    both = [[*words, "truly", "an", "expert"] for words in texts(0)]
    assert exploded_phrases(both, [[*words, "truly", "an", "expert"] for words in texts(1)], (PLACES, PLACES), **SETTINGS) == []


def test_without_the_correction_chance_would_name_phrases():
    """Twenty pairs of equal policies, thousands of phrases: none is named; at the uncorrected level of one in twenty some would be."""
    generous = {"longest": 3, "min_gain": 0.02, "level": 0.05}
    named = [exploded_phrases(texts(2 * s), texts(2 * s + 1), (PLACES, PLACES), **generous) for s in range(20)]
    assert sum(map(len, named)) <= 3
    p_H = _sign_tests(
        [(np.random.default_rng(s).integers(0, 2, 40) * 1.0, np.random.default_rng(999 - s).integers(0, 2, 40) * 1.0) for s in range(300)],
        (PLACES, PLACES),
    )
    assert (p_H <= 0.05).sum() > 3


def test_several_samples_of_a_prompt_count_as_one_prompt():
    """Two prompts with twenty samples each: two signs, whatever is said, and never enough to name anything."""
    twice = np.repeat([0, 1], 20)
    planted = [[*words, "truly"] for words in texts(0)]
    assert exploded_phrases(planted, texts(1), (twice, twice), **SETTINGS) == []
