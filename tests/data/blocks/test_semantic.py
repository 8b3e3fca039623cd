"""Lexical-semantic near-duplicates: embeddings by hand, what is found, order, clusters."""

import json
import random

import numpy as np
import pytest

from data.blocks.base import Row, Survey
from data.blocks.semantic import Semantic, SemanticSettings
from data.blocks.words import ngram_hashes
from data.forms import Example
from data.records import Message


def row(text):
    return Row(0, "planted", 1, Example((Message("user", text),)))


def decided(texts, seed=0, **settings):
    block = Semantic(SemanticSettings(**settings))
    return block.decide(block.describe([row(text) for text in texts]), seed)


def texts(count, seed=0, words=30):
    generator = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(4000)]
    return [" ".join(generator.choices(vocabulary, k=words)) for _ in range(count)]


def test_an_embedding_by_hand():
    """a a b: weights 1 + ln 2 and 1 at the hashes' places and signs, divided by the length."""
    block = Semantic(SemanticSettings(dimensions=64, pair_words=False))
    assert isinstance(block, Survey) and block.values == np.dtype((np.float16, 64))
    (a, b), _ = ngram_hashes([["a", "b"]], 1)
    expected = np.zeros(64)
    for gram, weight in ((int(a), 1 + np.log(2)), (int(b), 1.0)):
        expected[gram % 64] += weight if gram >> 63 else -weight
    expected /= np.linalg.norm(expected)
    assert block.describe([row("A b, a")])[0] == pytest.approx(expected, abs=1e-3)


def test_the_same_words_in_another_order_are_found_where_single_words_are_embedded():
    base = texts(200)
    moved = base[7].split()
    random.Random(1).shuffle(moved)
    decision = decided([*base, " ".join(moved)], pair_words=False, threshold=0.9)
    assert np.flatnonzero(~decision.keep).tolist() == [200]
    assert decision.details[200].startswith("means the same as row 7 (cosine 0.9") or "cosine 1.00" in decision.details[200]
    assert decided([*base, " ".join(moved)], threshold=0.9).keep.all()


def test_the_first_row_stays_and_what_goes_hides_nothing():
    """b is like a and goes; c is like b and not like a: it stays, for b is not there any more."""
    words = [f"word{number}" for number in range(40)]
    a, b, c = (" ".join(words[start : start + 20]) for start in (0, 3, 6))
    decision = decided([a, b, c, *texts(50)], threshold=0.75)
    assert decision.keep[:3].tolist() == [True, False, True]
    assert decision.reason == "semantic_duplicate"
    assert decided([c, b, a, *texts(50)], threshold=0.75).keep[:3].tolist() == [True, False, True]


@pytest.mark.parametrize("clusters", [1, 5])
def test_copies_are_found_in_any_number_of_clusters(clusters):
    base = texts(300)
    decision = decided([*base, *base[::-1]], clusters=clusters)
    assert decision.keep.tolist() == [True] * 300 + [False] * 300
    assert decision.details[300] == "means the same as row 299 (cosine 1.00)"


@pytest.mark.parametrize("count", [2, 5, 3000])
def test_a_set_of_one_text_keeps_one(count):
    """Centring would leave nothing of it."""
    assert decided(["the same text again and again"] * count).keep.tolist() == [True] + [False] * (count - 1)


def test_a_large_set_of_nearly_one_text_keeps_little():
    """Cosines of 0.999: without the dimension that all share, centring would leave their differences alone."""
    generator = np.random.default_rng(0)
    values = generator.normal(0, 0.0316 / 8, (20_000, 64))
    values[:, 0] += 1
    assert Semantic(SemanticSettings(clusters=1, dimensions=64)).decide(values.astype(np.float16), 0).keep.sum() < 20


def test_texts_that_share_a_template_are_not_the_same():
    template = "Please read the following request with care and then answer it in your own words as well as you can: "
    texts_in_it = [template + " ".join(text.split()[:6]) for text in texts(4000)]
    assert decided(texts_in_it, threshold=0.7).keep.mean() > 0.97


def test_texts_without_words_are_kept():
    assert decided(["", "?", "", "hello there", "hello there"]).keep.tolist() == [True] * 4 + [False]
    assert decided([]).keep.tolist() == [] and decided(["", ""]).keep.all()


def test_any_way_of_describing_gives_the_same_and_so_does_the_same_seed():
    rows = [row(text) for text in [*texts(40), "", "x", "\ud800", "東京" * 50]]
    block = Semantic(SemanticSettings())
    whole = block.describe(rows)
    for size in (1, 7):
        assert np.array_equal(np.concatenate([block.describe(rows[n : n + size]) for n in range(0, len(rows), size)]), whole)
    many = texts(500) * 2
    first, again = decided(many, seed=3, clusters=4), decided(many, seed=3, clusters=4)
    assert np.array_equal(first.keep, again.keep) and first.details == again.details


def test_values_mapped_from_disk_decide_alike(tmp_path, monkeypatch):
    block = Semantic(SemanticSettings(clusters=3))
    values = block.describe([row(text) for text in texts(300) * 2])
    np.save(tmp_path / "values.npy", values, allow_pickle=False)
    whole = block.decide(values, 0)
    mapped = block.decide(np.load(tmp_path / "values.npy", mmap_mode="r"), 0)
    monkeypatch.setattr("data.blocks.semantic._BLOCK_ROWS", 17)
    blocks = block.decide(values, 0)
    assert np.array_equal(whole.keep, mapped.keep) and np.array_equal(whole.keep, blocks.keep)
    assert whole.details == blocks.details


def test_shortened_and_reordered_questions_are_found_and_others_are_not(shared_data):
    lines = (shared_data / "gsm8k/train.jsonl").read_text().splitlines()[:2000]
    questions = [json.loads(line)["question"] for line in lines]
    generator = random.Random(0)
    changed = []
    for question in questions[:200]:
        sentences = question.split(". ")
        generator.shuffle(sentences)
        changed.append(" ".join(word for word in ". ".join(sentences).split() if generator.random() < 0.95))
    decision = decided([*questions, *changed], threshold=0.75)
    assert (~decision.keep[2000:]).mean() > 0.95
    assert decision.keep[:2000].mean() > 0.99
