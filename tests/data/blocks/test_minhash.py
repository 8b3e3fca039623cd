"""MinHash with LSH: precision and recall on planted near-duplicates, order, clusters, hostile text."""

import json
import math
import random

import numpy as np
import pytest
from pydantic import ValidationError

from data.blocks.base import Row, Survey
from data.blocks.minhash import MinHash, MinHashSettings, best_banding, candidate_probability
from data.blocks.words import words_of
from data.forms import Example
from data.records import Message

PAIRS = 300  # planted at each similarity
GRAMS = 150  # word 5-grams of each planted text
SIMILARITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


def row(text, answer=None, system=None):
    prompt = (Message("user", text),) if system is None else (Message("system", system), Message("user", text))
    return Row(0, "planted", 1, Example(prompt, completion=answer))


def decided(rows, **settings):
    block = MinHash(MinHashSettings(**settings))
    return block.decide(block.describe(rows), seed=0)


def kept(rows, **settings):
    return decided(rows, **settings).keep.tolist()


def grams(text, n=5):
    words = words_of(text, signs=True)
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def jaccard(left, right):
    a, b = grams(left), grams(right)
    return len(a & b) / len(a | b)


class Planted:
    """Pairs that begin alike: of T n-grams each, c = 2 T s / (1 + s) shared ones give the Jaccard similarity s."""

    def __init__(self, seed=0):
        generator = random.Random(seed)
        self.texts, self.pairs = [], []  # pairs: (row of the first, row of the second, similarity aimed at)
        words = [f"w{number}" for number in range(5000)]
        for similarity in SIMILARITIES:
            shared = round(2 * GRAMS * similarity / (1 + similarity)) + 4
            for _ in range(PAIRS):
                begin = generator.choices(words, k=shared)
                ends = [generator.choices(words, k=GRAMS + 4 - shared) for _ in range(2)]
                self.pairs.append((len(self.texts), len(self.texts) + 1, similarity))
                self.texts += [" ".join(begin + end) for end in ends]
        self.singles = [" ".join(generator.choices(words, k=GRAMS + 4)) for _ in range(1000)]

    def rows(self):
        return [row(text) for text in self.texts + self.singles]


@pytest.fixture(scope="module")
def planted():
    return Planted()


@pytest.fixture(scope="module")
def planted_rows(planted):
    return planted.rows()


def within(measured, probability, trials=PAIRS):
    """Whether a share lies within four deviations (and one trial) of a range of probabilities."""
    low, high = probability
    slack = [4 * math.sqrt(p * (1 - p) / trials) + 1 / trials for p in (low, high)]
    return low - slack[0] <= measured <= high + slack[1]


def test_the_planted_similarities_are_what_they_are_said_to_be(planted):
    for first, second, similarity in planted.pairs[::97]:
        assert jaccard(planted.texts[first], planted.texts[second]) == pytest.approx(similarity, abs=0.006)


def agreement_probability(similarity, hashes, threshold):
    """P(at least threshold of the hash values agree): the upper tail of a binomial."""
    least = math.ceil(threshold * hashes - 1e-9)
    return sum(math.comb(hashes, k) * similarity**k * (1 - similarity) ** (hashes - k) for k in range(least, hashes + 1))


@pytest.mark.parametrize(
    "settings",
    [
        {"bands": 14, "rows_per_band": 8, "verify": False},
        {"threshold": 0.8, "miss_weight": 0.5, "verify": False},
        {"threshold": 0.7},
        {"threshold": 0.8},
    ],
    ids=["fineweb 14x8", "0.8 unverified", "0.7 verified", "0.8 verified"],
)
def test_precision_and_recall_follow_the_s_curve(planted, planted_rows, settings):
    block = MinHash(MinHashSettings(**settings))
    threshold, verified = block.settings.threshold, block.settings.verify
    decision = block.decide(block.describe(planted_rows), seed=0)
    found = {similarity: [] for similarity in SIMILARITIES}
    for first, second, similarity in planted.pairs:
        assert decision.keep[first]
        found[similarity].append(not decision.keep[second])
    shape = f"{block.bands} bands of {block.rows_per_band}"
    print(f"\n{settings}: {shape}\n similarity  found  1-(1-s^r)^b")
    for similarity, hits in found.items():
        curve = float(candidate_probability(similarity, block.bands, block.rows_per_band))
        agrees = agreement_probability(similarity, block.bands * block.rows_per_band, threshold) if verified else 1.0
        print(f" {similarity:10} {np.mean(hits):6.3f}  {curve:.3f}" + (f", verified {agrees:.3f}" if verified else ""))
        # Both events have known probabilities: the share of both at once lies between these bounds (Frechet).
        assert within(np.mean(hits), (max(0.0, curve + agrees - 1), min(curve, agrees))), similarity
    true = sum(sum(hits) for similarity, hits in found.items() if similarity >= threshold)
    removed = int((~decision.keep).sum())
    print(f" recall {true / sum(len(h) for s, h in found.items() if s >= threshold):.3f}, precision {true / removed:.3f}")
    assert decision.keep[len(planted.texts) :].all(), "a text like no other was removed"
    if threshold == 0.7 and verified:
        clear = [hit for similarity in (0.8, 0.9, 0.95) for hit in found[similarity]]
        far = found[0.5] + found[0.6]
        assert np.mean(clear) > 0.98 and np.mean(far) < 0.03


def test_verification_sharpens_the_threshold(planted, planted_rows):
    """Ten to fifty points below the threshold nearly all candidates are thrown out."""
    below = [second for _, second, similarity in planted.pairs if similarity <= 0.6]
    loose = decided(planted_rows, threshold=0.7, verify=False).keep
    sharp = decided(planted_rows, threshold=0.7).keep
    assert (~loose[below]).mean() > 0.35
    assert (~sharp[below]).mean() < 0.03


def test_it_is_a_survey():
    block = MinHash(MinHashSettings())
    assert isinstance(block, Survey)
    assert block.values == np.dtype((np.uint32, 120))


def test_s_curve_and_banding_by_hand():
    assert candidate_probability(0.8, 14, 8) == pytest.approx(0.924, abs=5e-4)
    assert candidate_probability(0.5, 1, 1) == 0.5
    assert best_banding(0.7, 128, 0.9) == (20, 6)
    assert best_banding(0.7, 112, 0.5) == (12, 9)
    assert best_banding(0.5, 1, 0.5) == (1, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"bands": 4}, "set both, or neither"),
        ({"bands": 20, "rows_per_band": 10}, "need 200 hashes, more than 128"),
        ({"threshold": 1.0}, "less than 1"),
        ({"ngrams": 3}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        MinHashSettings(**settings)


TEXT = " ".join(f"word{number}" for number in range(60))


def test_the_first_row_stays_and_the_others_name_it():
    rows = [row("something else entirely, of many other words than those below"), row(TEXT), row(TEXT + " more"), row(TEXT.upper())]
    decision = decided(rows)
    assert decision.keep.tolist() == [True, True, False, False]
    assert decision.reason == "near_duplicate"
    assert set(decision.details) == {2, 3}
    assert decision.details[3] == "repeats row 1 (similarity 1.00)"
    assert decision.details[2].startswith("repeats row 1 (similarity 0.9")


def test_a_chain_is_one_cluster_whose_first_row_stays():
    """Each text drops 6 words of the one before and adds 6: neighbours are alike (J = 50/62), ends are not."""
    words = [f"word{number}" for number in range(120)]
    chain = [row(" ".join(words[start : start + 60])) for start in range(0, 60, 6)]
    assert jaccard(chain[0].text, chain[1].text) == 50 / 62
    assert jaccard(chain[0].text, chain[-1].text) < 0.05
    order = [5, 0, 9, 3, 7, 1, 8, 4, 2, 6]
    decision = decided([chain[number] for number in order], threshold=0.6)
    assert decision.keep.tolist() == [True] + [False] * 9
    assert decision.details[1].startswith("repeats row 0") and "through others" in decision.details[2]


def test_two_chains_do_not_mix():
    words = [[f"{name}{number}" for number in range(80)] for name in "ab"]
    rows = [row(" ".join(words[number % 2][start : start + 60])) for number, start in enumerate((0, 0, 5, 5, 10, 10))]
    decision = decided(rows, threshold=0.6)
    assert decision.keep.tolist() == [True, True, False, False, False, False]
    assert [decision.details[number].split()[2] for number in (2, 3, 4, 5)] == ["0", "1", "0", "1"]


def test_any_way_of_describing_gives_the_same_signatures(planted_rows):
    rows = [*planted_rows[:40], row(""), row("two words"), row("word " * 40_000), row("."), *planted_rows[40:60]]
    block = MinHash(MinHashSettings())
    whole = block.describe(rows)
    for size in (1, 7, 64):
        parts = [block.describe(rows[start : start + size]) for start in range(0, len(rows), size)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(MinHash(MinHashSettings()).describe(rows), whole)
    assert not np.array_equal(MinHash(MinHashSettings(seed=2)).describe(rows), whole)


def test_values_mapped_from_disk_and_passes_over_few_bands_decide_alike(planted_rows, tmp_path, monkeypatch):
    block = MinHash(MinHashSettings())
    values = block.describe(planted_rows)
    whole = block.decide(values, seed=0)
    np.save(tmp_path / "values.npy", values, allow_pickle=False)
    monkeypatch.setattr("data.blocks.minhash._KEYS_AT_ONCE", 3 * len(values))
    monkeypatch.setattr("data.blocks.minhash._PAIRS_AT_ONCE", 11)
    monkeypatch.setattr("data.blocks.equal.CHUNK_ROWS", 100)
    mapped = block.decide(np.load(tmp_path / "values.npy", mmap_mode="r"), seed=1)
    assert np.array_equal(mapped.keep, whole.keep) and mapped.details == whole.details


def test_a_minimum_by_hand():
    """One n-gram: its hash, times an odd number, plus another, its top 32 bits."""
    from data.blocks.words import ngram_hashes

    block = MinHash(MinHashSettings(bands=1, rows_per_band=2))
    (gram,), _ = ngram_hashes([["a", "b", "c"]], 5)
    expected = [((int(f) * int(gram) + int(o)) % 2**64) >> 32 for f, o in zip(block._factor_H, block._offset_H, strict=True)]
    assert block.describe([row("a, b: C!")]).tolist() == [expected]


def test_texts_without_words_are_kept_and_short_ones_are_compared_whole():
    rows = [row(""), row(""), row("?!"), row("?!"), row("Yes."), row("yes"), row("yes no"), row("3 + 4"), row("3 - 4")]
    assert kept(rows) == [True] * 5 + [False] + [True] * 3


def test_system_messages_do_not_make_rows_alike_and_a_part_can_be_named():
    system = " ".join(f"rule{number}" for number in range(300))
    assert kept([row("What is a cat?", system=system), row("Name a town in Peru.", system=system)]) == [True, True]
    pair = [row(TEXT, answer="one answer with these words"), row(TEXT, answer="quite another thing that was said")]
    assert kept(pair, part="prompt") == [True, False]
    assert kept(pair, part="answers") == [True, True]


def test_hostile_text_passes():
    texts = ["\ud800 lone surrogate", "\x00" * 1000, "a" * 1_000_000, "\u202e" * 50, "\U0001d573\U0001d58a " * 10, "\uff11\uff12 \uff13"]
    assert kept([row(text) for text in texts * 2])[: len(texts)] == [True] * len(texts)


def test_rows_that_share_a_band_and_are_not_alike_find_their_own_twins(monkeypatch):
    """All rows fall into one bucket (one band of one hash of a shared rare minimum); verification tells them apart."""
    block = MinHash(MinHashSettings(bands=1, rows_per_band=8, threshold=0.9))
    values = np.tile(np.arange(8, dtype=np.uint32), (6, 1))
    monkeypatch.setattr(block, "_band_keys", lambda signature_CH, band: np.zeros(len(signature_CH), np.uint64))
    values[[1, 3]] += 100
    values[[2, 4, 5]] += 200
    decision = block.decide(values, seed=0)
    assert decision.keep.tolist() == [True, True, True, False, False, False]
    assert [decision.details[number][:13] for number in (3, 4, 5)] == ["repeats row 1", "repeats row 2", "repeats row 2"]


def test_no_rows_at_all():
    block = MinHash(MinHashSettings())
    decision = block.decide(block.describe([]), seed=0)
    assert decision.keep.tolist() == [] and decision.details == {}


def test_real_questions_with_planted_copies(shared_data):
    """Copies of gsm8k questions with one word in a hundred changed are found where their own Jaccard similarity is above 0.8."""
    lines = (shared_data / "gsm8k/train.jsonl").read_text().splitlines()[:1500]
    questions = [json.loads(line)["question"] for line in lines]
    generator = random.Random(0)
    copies = [" ".join("other" if generator.random() < 0.01 else word for word in text.split()) for text in questions[:300]]
    decision = decided([row(text) for text in [*questions, *copies]])
    similar = [1500 + n for n, copy in enumerate(copies) if jaccard(questions[n], copy) >= 0.8]
    assert len(similar) > 150
    assert (~decision.keep[similar]).mean() > 0.98
    assert decision.keep[:1500].mean() > 0.99
