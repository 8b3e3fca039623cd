"""Exact and Bloom deduplication, and what deduplication stands on: comparable text, words, equal rows, clusters."""

import random
import tracemalloc

import numpy as np
import psutil
import pytest
from pydantic import ValidationError

from data.blocks import equal
from data.blocks import words as words_module
from data.blocks.base import Row, Survey
from data.blocks.bloom import Bloom, BloomSettings, _integers
from data.blocks.equal import Clusters, first_equals
from data.blocks.exact import Exact, ExactSettings
from data.blocks.words import ComparisonSettings, comparable, hash_words, mixed, ngram_hashes, part_of, run_hashes, words_of
from data.forms import Example
from data.records import Message

HOSTILE = ["\ud800", "\x00", "\u202eabc", "a" * 1_000_000, "\u0301" * 999, "\U0001d573", "'; DROP TABLE rows; --", "<script>", " \t\n", ""]


def row(text, answer=None, system=None):
    prompt = (Message("user", text),) if system is None else (Message("system", system), Message("user", text))
    return Row(0, "planted", 1, Example(prompt, completion=answer))


def decided(block, rows, seed=0):
    return block.decide(block.describe(rows), seed)


BOTH = [Exact(ExactSettings()), Bloom(BloomSettings(capacity=1000, false_positive_rate=1e-6))]


@pytest.mark.parametrize("block", BOTH, ids=lambda block: block.name)
class TestBoth:
    def test_it_is_a_survey(self, block):
        assert isinstance(block, Survey)
        assert block.describe([row("a"), row("b")]).shape == (2, *block.values.shape)

    def test_the_first_row_stays(self, block):
        texts = ["one", "two", "One ", "three", "ONE", "two", "four"]
        decision = decided(block, [row(text) for text in texts])
        assert decision.keep.tolist() == [True, True, False, True, False, False, True]
        assert (decision.reason, set(decision.details)) == ("duplicate", {2, 4, 5})

    def test_the_answer_counts_and_the_system_message_does_not(self, block):
        rows = [row("q", "a"), row("q", "b"), row("q", "a", system="Be good."), row("q")]
        assert decided(block, rows).keep.tolist() == [True, True, False, True]

    def test_it_does_not_matter_how_rows_are_described(self, block):
        rows = [row(text) for text in [*HOSTILE, "x", "y"]]
        whole = block.describe(rows)
        parts = np.concatenate([block.describe(rows[start : start + 5]) for start in range(0, len(rows), 5)])
        assert np.array_equal(whole, parts)

    def test_hostile_text_stays_once(self, block):
        decision = decided(block, [row(text) for text in HOSTILE * 2])
        assert decision.keep.tolist() == [True] * 9 + [False] * 11  # white space alone is the empty text

    def test_the_seed_and_the_chunks_change_nothing(self, block, monkeypatch):
        generator = random.Random(0)
        rows = [row(str(generator.randrange(300))) for _ in range(900)]
        values = block.describe(rows)
        whole = block.decide(values, seed=0)
        monkeypatch.setattr(equal, "CHUNK_ROWS", 7)
        again = block.decide(values, seed=5)
        assert np.array_equal(whole.keep, again.keep) and whole.details == again.details
        seen = set()
        assert whole.keep.tolist() == [not (r.text in seen or seen.add(r.text)) for r in rows]

    def test_no_rows_at_all(self, block):
        assert decided(block, []).keep.tolist() == []


def test_exact_names_the_row_that_is_repeated():
    rows = [row("a"), row("b"), row("b"), row("b"), row("a")]
    assert decided(Exact(ExactSettings()), rows).details == {4: "repeats row 0", 2: "repeats row 1", 3: "repeats row 1"}


def test_exact_compares_the_whole_digest():
    values = np.array([[1, 1], [1, 2], [2, 2], [1, 2]], np.uint64)
    assert Exact(ExactSettings()).decide(values, 0).keep.tolist() == [True, True, True, False]


@pytest.mark.parametrize(("part", "keeps"), [("all", [True, True]), ("prompt", [True, False]), ("answers", [True, True])])
def test_a_part_of_the_row_can_be_compared(part, keeps):
    rows = [row("What?", "this"), row("what?", "that")]
    assert decided(Exact(ExactSettings(part=part)), rows).keep.tolist() == keeps


# Bloom


def test_the_size_of_the_filter_is_that_of_the_formula():
    """n = 10^6, p = 0.01: m = 10^6 x 4.60517 / 0.480453 = 9,585,059 bits; the library rounds up to bytes."""
    settings = BloomSettings(capacity=1_000_000, false_positive_rate=0.01)
    assert settings.bits() == 9_585_059
    assert 0 <= Bloom(settings).filter().size_in_bits - settings.bits() < 8


@pytest.mark.parametrize("rate", [0.05, 0.01, 0.001])
def test_the_measured_rate_is_the_stated_one(rate):
    """The filter full, 50,000 rows that it never saw: within four deviations and the rounding of k (at most a tenth)."""
    capacity, trials = 20_000, 50_000
    block = Bloom(BloomSettings(capacity=capacity, false_positive_rate=rate))
    seen = block.filter()
    values = np.random.default_rng(0).integers(0, 2**64, (capacity + trials, 2), dtype=np.uint64)
    seen.update(_integers(values[:capacity]))
    measured = np.mean([digest in seen for digest in _integers(values[capacity:])])
    print(f"\nstated {rate}, measured {measured:.5f}")
    deviation = (rate * (1 - rate) / trials) ** 0.5
    assert abs(measured - rate) < 4 * deviation + 0.1 * rate


def test_while_it_fills_it_loses_less_than_the_stated_share_and_never_keeps_a_repeated_row():
    values = np.random.default_rng(1).integers(0, 2**64, (20_000, 2), dtype=np.uint64)
    decision = Bloom(BloomSettings(capacity=20_000, false_positive_rate=0.01)).decide(np.concatenate([values, values]), 0)
    assert not decision.keep[20_000:].any()
    assert 0 < (~decision.keep[:20_000]).mean() < 0.01


def test_more_different_rows_than_the_capacity_are_refused_and_repeated_ones_are_not():
    block = Bloom(BloomSettings(capacity=10, false_positive_rate=1e-6))
    assert decided(block, [row(str(number % 10)) for number in range(100)]).keep.sum() == 10
    with pytest.raises(ValueError, match="11 different rows among the first 11, capacity is 10"):
        decided(block, [row(str(number)) for number in range(11)])


def test_memory_does_not_grow_with_the_number_of_rows(tmp_path):
    """The rows' digests lie on disk; what is held is a byte a row for the decision, and the filter."""
    values = np.random.default_rng(0).integers(0, 2**64, (200_000, 2), dtype=np.uint64)
    np.save(tmp_path / "values.npy", values, allow_pickle=False)
    block = Bloom(BloomSettings(capacity=200_000, false_positive_rate=1e-6))
    peaks = []
    for rows in (100_000, 200_000):
        mapped = np.load(tmp_path / "values.npy", mmap_mode="r")[:rows]
        tracemalloc.start()
        block.decide(mapped, 0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4 * 100_000


@pytest.mark.parametrize("settings", [{"capacity": 0}, {"false_positive_rate": 0}, {"false_positive_rate": 0.5}, {"hashes": 3}])
def test_settings_of_the_filter_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        BloomSettings(**settings)


# Comparable text and words


@pytest.mark.parametrize(
    ("settings", "same", "different"),
    [
        ({}, [("\uff28ello", "hello"), ("a  b\n", "a b"), ("ﬁne", "FINE"), ("Straße", "STRASSE")], [("a.", "a"), ("3+4", "3-4")]),
        ({"ignore_case": False}, [("a  b", "a b")], [("A", "a")]),
        ({"ignore_white_space": False}, [("A b", "a b")], [("a  b", "a b"), ("a ", "a")]),
        ({"fold_compatible": False}, [("A", "a")], [("\uff28", "H"), ("2²", "22")]),
        ({"ignore_punctuation": True}, [("Hello, world!", "hello world"), ("don't_", "dont")], [("?!", "!?"), ("a b", "ab")]),
    ],
)
def test_what_counts_as_the_same_text(settings, same, different):
    settings = ComparisonSettings(**settings)
    assert [comparable(a, settings) == comparable(b, settings) for a, b in same] == [True] * len(same)
    assert [comparable(a, settings) == comparable(b, settings) for a, b in different] == [False] * len(different)


def test_comparable_text_by_hand():
    every = ComparisonSettings(ignore_punctuation=True)
    none = ComparisonSettings(ignore_case=False, ignore_white_space=False, fold_compatible=False)
    assert comparable("\uff28ello,  World!", every) == "hello world"
    assert comparable("\uff28ello,  World!", none) == "\uff28ello,  World!"


def test_words_by_hand():
    assert words_of("Don't  STOP_it, 東京 3+4-x!", signs=True) == ["don", "t", "stop", "it", "東", "京", "3", "+", "4", "x"]
    assert words_of("Don't  STOP_it, 東京 3+4-x!", signs=False) == ["don", "t", "stop", "it", "東", "京", "3", "4", "x"]
    assert words_of(" ... \n", signs=True) == []


def test_the_parts_of_a_row():
    whole = row("ask", "answer", system="rules")
    assert [part_of(whole, part) for part in ("all", "prompt", "answers")] == ["ask\nanswer", "ask", "answer"]


def test_ngram_hashes_by_hand():
    """Horner's rule in plain integers, then the finaliser of MurmurHash3."""

    def by_hand(words):
        value = len(words)
        for word in words:
            value = (value * 0x9E3779B97F4A7C15 + int(hash_words([word])[0])) % 2**64
        for shift, factor in ((33, 0xFF51AFD7ED558CCD), (33, 0xC4CEB9FE1A85EC53)):
            value = (value ^ (value >> shift)) * factor % 2**64
        return value ^ (value >> 33)

    rows = [list("abcd"), [], list("xy"), list("q"), list("pqrst")]
    hashes, counts = ngram_hashes(rows, 3)
    assert counts.tolist() == [2, 0, 1, 1, 3]
    expected = ["abc", "bcd", "xy", "q", "pqr", "qrs", "rst"]
    assert hashes.tolist() == [by_hand(gram) for gram in expected]
    assert run_hashes(hash_words("abcd"), 3).tolist() == hashes[:2].tolist()
    assert run_hashes(hash_words("ab"), 3).tolist() == []


def test_mixing_is_a_permutation_with_a_known_value():
    """fmix64(1) of MurmurHash3 is 0xb456bcfc34c2cb2c."""
    assert int(mixed(np.array([1], np.uint64))[0]) == 0xB456BCFC34C2CB2C
    assert len(np.unique(mixed(np.arange(10_000, dtype=np.uint64)))) == 10_000


def test_word_hashes_are_the_same_when_their_bounded_memory_is_cleared(monkeypatch):
    words = [f"w{number}" for number in range(50)] + ["x" * 1000]
    before = hash_words(words)
    monkeypatch.setattr(words_module, "_hashes", words_module._WordHashes())
    monkeypatch.setattr(words_module, "_REMEMBERED_WORDS", 3)
    assert np.array_equal(hash_words([f"new{number}" for number in range(9)] + words)[9:], before)
    assert len(words_module._hashes) <= 3
    assert int(hash_words(["a"])[0]) == int.from_bytes(bytes.fromhex("40f89e395b66422f"), "little")  # printf a | b2sum -l 64


# Equal rows and clusters


def test_first_equals_by_hand():
    rows, firsts = first_equals(np.array([7, 5, 7, 7, 5]))
    assert (rows.tolist(), firsts.tolist()) == ([4, 2, 3], [1, 0, 0])


def test_chunks_of_a_mapped_file_do_not_stay_in_memory(tmp_path):
    np.save(tmp_path / "values.npy", np.ones((1 << 20, 16), np.uint32), allow_pickle=False)  # 64 MiB
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    before = psutil.Process().memory_info().rss
    peak = before
    for _, chunk in equal.chunks(mapped):
        assert chunk.all()
        peak = max(peak, psutil.Process().memory_info().rss)
    assert peak - before < 24 << 20


def test_clusters_are_those_of_a_plain_union_find():
    generator = random.Random(0)
    edges = [(generator.randrange(400), generator.randrange(400)) for _ in range(260)]
    clusters = Clusters(400)
    for part in (edges[:100], edges[100:]):
        clusters.join(*np.array(part).T)
    lowest = list(range(400))
    for _ in range(400):
        for a, b in edges:
            lowest[a] = lowest[b] = min(lowest[a], lowest[b])
    assert clusters.root_N.tolist() == lowest


def test_a_long_chain_is_one_cluster():
    clusters = Clusters(100_000)
    order = np.random.default_rng(0).permutation(99_999)
    clusters.join(order, order + 1)
    assert not clusters.root_N.any()
