"""Diversity of a group of texts, by hand."""

import math

import numpy as np
import pytest

from data.diversity import cut_tokens, distinct, embeddings, most_common_opening, ngrams, self_bleu, semantic_spread

A, B = ["a", "b", "a"], ["a", "b"]


def test_distinct_by_hand():
    assert distinct([A, B], 1) == 2 / 5 and distinct([A, B], 2) == 2 / 3 and distinct([A, B], 3) == 1
    assert distinct([[], []], 1) == 0


def test_ngrams_and_cuts():
    assert ngrams(A, 2) == [("a", "b"), ("b", "a")] and ngrams(B, 3) == []
    assert cut_tokens("One, TWO three", 3) == ["one", ",", "two"]


def test_self_bleu_is_one_for_equal_texts_and_low_for_others():
    same = ["the", "cat", "sat", "on", "the", "mat"]
    assert self_bleu([same, same, same]) == pytest.approx(1)
    assert self_bleu([same, ["a", "dog", "ran", "in", "my", "house"]]) < 0.1
    with pytest.raises(ValueError, match="at least two"):
        self_bleu([same])


def test_self_bleu_by_hand():
    """a b c d against a b c e: precisions 3/4, 2/3, 1/2 and of the one 4-gram none, which exponential smoothing takes for 1/2."""
    expected = math.exp((math.log(3 / 4) + math.log(2 / 3) + math.log(1 / 2) + math.log(1 / 2)) / 4)
    assert self_bleu([list("abcd"), list("abce")]) == pytest.approx(expected)


def test_spread_by_hand():
    assert semantic_spread(np.eye(2)) == pytest.approx(1)
    assert semantic_spread(np.array([[1.0, 0.0], [1.0, 0.0]])) == pytest.approx(0)
    assert semantic_spread(np.array([[1.0, 0.0], [0.6, 0.8]])) == pytest.approx(0.4)


def test_empty_texts_are_alike_and_unlike_others():
    assert semantic_spread(embeddings(["", " ", "..."])) == pytest.approx(0)
    assert semantic_spread(embeddings(["", "a red house"])) == pytest.approx(1)
    assert semantic_spread(embeddings(["a red house", "A red house!"])) == pytest.approx(0, abs=1e-6)


def test_the_most_common_opening():
    assert most_common_opening([["a", "b", "c"], ["a", "b", "d"], ["b"]], 2) == ("a", "b")
    assert most_common_opening([["b"], ["a"]], 2) == ("a",) and most_common_opening([], 2) == ()
