"""Blocks that learn: the n-gram model against lmplz's numbers, KenLM's scores, the classifier, importance resampling; texts they read."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import kenlm
import numpy as np
import pytest

from data.blocks.base import Block, Rejected, Row, Survey
from data.blocks.classifier import Classifier, ClassifierSettings
from data.blocks.dsir import DSIR, DSIRSettings
from data.blocks.features import character_ngram_buckets, word_ngram_buckets
from data.blocks.ngram_model import discounts_of, train, write_arpa
from data.blocks.perplexity import Perplexity, PerplexitySettings, lines_of
from data.blocks.references import reference_texts
from data.forms import Example
from data.records import Message

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).resolve().parent / "golden"
SUBJECTS, VERBS, OBJECTS = (
    ("the cat", "a dog", "my aunt", "the king"),
    ("sees", "likes", "finds", "hears"),
    ("tea", "a bird", "the sea", "rain"),
)


def row(completion: str, line: int = 1) -> Row:
    return Row(0, "file", line, Example((Message("user", "Why?"),), completion=completion))


def sentences(seed: int, count: int) -> list[str]:
    """Sentences of a small grammar."""
    generator = np.random.default_rng(seed)
    texts = []
    for _ in range(count):
        clauses = [" ".join(str(generator.choice(part)) for part in (SUBJECTS, VERBS, OBJECTS)) for _ in range(4)]
        texts.append(", and ".join(clauses) + ".")
    return texts


def scrambled(seed: int, count: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.permutation(text.split())) for text in sentences(seed, count)]


def arpa(path: Path) -> dict[str, tuple[float, float]]:
    """log10 probability and back-off weight of every n-gram."""
    fields = (line.rstrip("\n").split("\t") for line in path.read_text().splitlines())
    return {each[1]: (float(each[0]), float(each[2]) if len(each) > 2 else 0.0) for each in fields if len(each) > 1}


def test_discounts_by_hand():
    # t = 4, 3, 2, 1: Y = 0.4
    assert discounts_of(np.array([1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 9])) == pytest.approx((0.4, 1.2, 2.2))
    assert discounts_of(np.array([1, 1, 2, 7])) == (0.5, 1.0, 1.5)  # no n-gram counted three times
    assert discounts_of(np.array([1, 2, 3, 3, 3, 3])) == (0.5, 1.0, 1.5)  # D_2 = 2 - 3/3 * 4 would be negative


def test_a_bigram_model_by_hand():
    """Of "a b", "a": bigrams <s> a (2), a b, b </s>, a </s>; fallback discounts 0.5 and 1 (counts of 1 and 2).

    Unigrams count what comes before: a 1, b 1, </s> 2, together 4. Taken off: 0.5 + 0.5 + 1 = 2, shared by a, b, </s> and <unk>: 0.125
    each. p(a) = 0.5 / 4 + 0.125 = 0.25 = p(b), p(</s>) = 1 / 4 + 0.125 = 0.375, p(<unk>) = 0.125. After a: total 2, taken 1, so gamma 0.5:
    p(b | a) = 0.25 + 0.5 * 0.25 = 0.375, p(</s> | a) = 0.25 + 0.5 * 0.375 = 0.4375. After <s>: gamma 1 / 2, p(a) = 0.5 + 0.5 * 0.25.
    """
    model = train([["a", "b"], ["a"]], 2)
    assert model.words == ["<unk>", "<s>", "</s>", "a", "b"]
    assert model.probability_G[0].tolist() == pytest.approx([0.125, 1.0, 0.375, 0.25, 0.25])
    table = model.tables[1]
    bigrams = {(model.words[c], model.words[w]): p for c, w, p in zip(table.context_G, table.word_G, model.probability_G[1], strict=True)}
    assert bigrams == pytest.approx({("<s>", "a"): 0.625, ("a", "b"): 0.375, ("a", "</s>"): 0.4375, ("b", "</s>"): 0.6875})
    assert model.backoff_G[0][3] == 0.5


@pytest.mark.parametrize("order", [2, 3, 4])
def test_the_probabilities_after_any_context_sum_to_one(order, tmp_path):
    model = train([text.split() for text in sentences(1, 60)], order)
    write_arpa(model, tmp_path / "model.arpa")
    scorer = kenlm.Model(str(tmp_path / "model.arpa"))
    words = [word for word in model.words if word not in ("<s>", "<unk>")]
    for context in (["the", "cat"], ["tea,"], ["never", "heard"], []):
        state = kenlm.State()
        scorer.BeginSentenceWrite(state)
        for word in context:
            following = kenlm.State()
            scorer.BaseScore(state, word, following)
            state = following
        total = sum(10 ** scorer.BaseScore(state, word, kenlm.State()) for word in [*words, "<unk>"])
        assert total == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["sentences_3", "sentences_4"])
def test_the_model_is_lmplz(name, tmp_path):
    """``golden/*.arpa`` is what lmplz (KenLM of 2025-03-30, --discount_fallback) makes of ``golden/*.txt``, in single precision.

    For its discounts lmplz takes the very last n-gram of each order by its plain count; the last word of the text occurs once, where
    that is the adjusted count too.
    """
    texts = (GOLDEN / "sentences.txt").read_text().splitlines()
    write_arpa(train([text.split() for text in texts], int(name[-1])), tmp_path / "model.arpa")
    ours, theirs = arpa(tmp_path / "model.arpa"), arpa(GOLDEN / f"{name}.arpa")
    assert ours.keys() == theirs.keys() and len(ours) > 300
    assert max(abs(ours[gram][part] - theirs[gram][part]) for gram in ours for part in (0, 1)) < 2e-6


@pytest.mark.parametrize("words", [["<s>"], ["a b"], [""], ["a\u2028b"]])
def test_words_that_would_break_the_file_are_refused(words):
    with pytest.raises(ValueError, match="a word is without white space"):
        train([words], 2)
    with pytest.raises(ValueError, match="no word to learn from"):
        train([], 2)


def test_lines_by_hand():
    assert list(lines_of("Is 3 < 12?\n\n \x85\ud800 B\x00c")) == [["is", "0", "<", "00", "?"], ["\ufffd", "b", "c"]]


def perplexity_block(tmp_path, **fields) -> Perplexity:
    text = tmp_path / "text.txt"
    text.write_text("\n".join(sentences(1, 400)))
    (tmp_path / "scratch").mkdir(exist_ok=True)
    block = Perplexity(PerplexitySettings(text=str(text), order=3, **fields))
    block.prepare(0, tmp_path / "scratch")
    return block


def test_perplexity_tells_text_from_word_salad(tmp_path):
    block = perplexity_block(tmp_path, max_quantile=0.99)
    assert isinstance(block, Block)
    kept = [isinstance(block(row(text)), Row) for text in sentences(2, 50)]
    rejected = [block(row(text)) for text in scrambled(2, 50)]
    assert sum(kept) >= 48
    assert all(isinstance(each, Rejected) and each.reason == "perplexity_high" for each in rejected)
    assert isinstance(block(row("xyzzy plugh")), Row)  # fewer than ten words


def test_perplexity_is_kenlms(tmp_path):
    block = perplexity_block(tmp_path)
    scorer = kenlm.Model(str(tmp_path / "scratch" / "model.arpa"))
    text = "The cat sees tea.\nA dog, 7!"
    logp = scorer.score("the cat sees tea .") + scorer.score("a dog , 0 !")
    assert block.perplexity(text) == pytest.approx(10 ** (-logp / (5 + 1 + 5 + 1)))
    assert block.perplexity(" \n") == 1


def test_perplexity_bounds(tmp_path):
    block = perplexity_block(tmp_path, limit="perplexity", min_perplexity=2, max_perplexity=50)
    low, high = block(row("the cat sees tea, and " * 20)), block(row("zebra " * 20))
    assert isinstance(low, Row) and isinstance(high, Rejected)
    narrow = perplexity_block(tmp_path, limit="perplexity", min_perplexity=49, max_perplexity=50)
    answer = narrow(row(sentences(3, 1)[0]))
    assert isinstance(answer, Rejected) and answer.reason == "perplexity_low"
    reference = tmp_path / "reference.txt"
    reference.write_text("\n".join(scrambled(5, 100)))
    loose = perplexity_block(tmp_path, reference=str(reference), max_quantile=1)
    assert isinstance(loose(row(scrambled(2, 1)[0])), Row)
    assert loose.settings.paths() == [tmp_path / "text.txt", reference]


def test_perplexity_needs_enough_reference_texts(tmp_path):
    text = tmp_path / "few.txt"
    text.write_text("\n".join(sentences(1, 50)))
    block = Perplexity(PerplexitySettings(text=str(text), order=2))
    with pytest.raises(ValueError, match="quantiles need 20 reference texts of 10 words or more"):
        block.prepare(0, tmp_path)
    with pytest.raises(ValueError, match="no model yet"):
        Perplexity(PerplexitySettings(text=str(text))).perplexity("x")


def test_perplexity_reads_no_more_words_than_told(tmp_path):
    block = perplexity_block(tmp_path, max_words=300, limit="perplexity")
    assert json.loads((tmp_path / "scratch" / "perplexity.json").read_text())["ngrams"][0] < 30
    assert block.perplexity("zebra") > 1


def good_and_bad(tmp_path) -> dict[str, str]:
    for name, texts in (("good", sentences(1, 200)), ("bad", scrambled(2, 300))):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    return {"good": str(tmp_path / "good.txt"), "bad": str(tmp_path / "bad.txt")}


@pytest.mark.parametrize("fields", [{}, {"max_characters": 4, "buckets_log2": 12}])
def test_the_classifier_learns(tmp_path, fields):
    block = Classifier(ClassifierSettings(**good_and_bad(tmp_path), **fields))
    assert isinstance(block, Block)
    with pytest.raises(ValueError, match="not trained yet"):
        block.probability("x")
    block.prepare(0, tmp_path)
    report = json.loads((tmp_path / "classifier.json").read_text())
    assert (report["good"], report["bad"]) == (200, 300) and report["accuracy"] > 0.9 and report["auc"] > 0.95
    assert sum(isinstance(block(row(text)), Row) for text in sentences(7, 50)) >= 45
    rejected = [block(row(text)) for text in scrambled(8, 50)]
    assert sum(isinstance(each, Rejected) and each.reason == "classified_bad" for each in rejected) >= 45


def test_the_larger_class_does_not_win_by_its_size(tmp_path):
    """Both classes have the same texts, one of them ten times: no text tells them apart, so each is good with probability 1/2."""
    for name, times in (("good", 1), ("bad", 10)):
        (tmp_path / f"{name}.txt").write_text("\n".join(sentences(1, 100) * times))
    block = Classifier(ClassifierSettings(good=str(tmp_path / "good.txt"), bad=str(tmp_path / "bad.txt"), buckets_log2=10))
    block.prepare(0, tmp_path)
    assert np.mean([block.probability(text) for text in sentences(1, 100)]) == pytest.approx(0.5, abs=0.05)


def test_the_classifiers_probability_is_that_of_the_trained_model(tmp_path):
    """Weights as fitted; features by hand: b a b has a once, b twice, "b a" and "a b" once, and its length is the root of 7."""
    block = Classifier(ClassifierSettings(**good_and_bad(tmp_path), buckets_log2=16))
    block.prepare(0, tmp_path)
    with np.load(tmp_path / "classifier.npz", allow_pickle=False) as stored:
        weights, intercept = stored["weights"].astype(float), float(stored["intercept"][0])
    text = "sees tea sees"
    sees, tea, sees_tea, tea_sees = (word_ngram_buckets(part, 2, 2**16)[-1] for part in ("sees", "tea", "sees tea", "tea sees"))
    score = (2 * weights[sees] + weights[tea] + weights[sees_tea] + weights[tea_sees]) / math.sqrt(7) + intercept
    assert block.probability(text) == pytest.approx(1 / (1 + math.exp(-score)), rel=1e-5)


def test_the_classifier_needs_texts(tmp_path):
    files = good_and_bad(tmp_path)
    (tmp_path / "bad.txt").write_text("one\ntwo")
    with pytest.raises(ValueError, match=r"bad='.*' holds 2 texts; a classifier needs 10"):
        Classifier(ClassifierSettings(**files)).prepare(0, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"good='.*nowhere.txt' is no file; .* holds bad.txt, good.txt"):
        ClassifierSettings(good=str(tmp_path / "nowhere.txt"), bad=files["bad"]).paths()


def resampler(tmp_path, **fields) -> DSIR:
    (tmp_path / "target.txt").write_text("\n".join(sentences(1, 200)))
    block = DSIR(DSIRSettings(target=str(tmp_path / "target.txt"), scope="imitated", **fields))
    block.prepare(0, tmp_path)
    return block


def mixture() -> list[Row]:
    other = [f"solve {i} plus {i % 7} minus the root of {i * 3}, then add {i % 5} more." for i in range(300)]
    return [row(text, line) for line, text in enumerate([*other, *sentences(9, 100)])]


def test_resampling_draws_rows_like_the_target(tmp_path):
    block = resampler(tmp_path, keep="rows", keep_rows=100)
    assert isinstance(block, Survey)
    values = block.describe(mixture())
    assert values.dtype == np.uint16 and values.shape == (400, 256) and np.empty(400, block.values).shape == values.shape
    decision = block.decide(values, seed=3)
    assert decision.keep.sum() == 100 and decision.keep[300:].sum() >= 98
    assert set(decision.details) == set(np.flatnonzero(~decision.keep).tolist()) and decision.reason == "not_drawn"
    assert decision.details[0].startswith("log weight -")


def test_log_weights_by_hand(tmp_path):
    """Rows "tea tea" and "rain", target "tea", words only: p(tea) = 1, q(tea) = 2/3, q(rain) = 1/3, and 1e-6 for each of 16 buckets."""
    (tmp_path / "target.txt").write_text("tea")
    block = DSIR(DSIRSettings(target=str(tmp_path / "target.txt"), scope="imitated", ngrams=1, buckets=16))
    block.prepare(0, tmp_path)
    tea, rain = (int(word_ngram_buckets(word, 1, 16)[0]) for word in ("tea", "rain"))
    assert tea != rain
    weights = block.log_weights(block.describe([row("tea tea"), row("rain"), row("")]))
    assert weights.dtype == np.float32
    assert weights.tolist() == pytest.approx([2 * math.log(3 / 2), math.log(1e-6 / (1 / 3)), 0], rel=1e-4)


def test_drawing_follows_the_weights(tmp_path):
    """Of two rows the first is drawn with probability w_1 / (w_1 + w_2), by Gumbel's maximum: half the time where they are equal, so
    500 times in 1,000 with a standard error of 16."""
    block = resampler(tmp_path, keep="rows", keep_rows=1)
    values = block.describe([row("tea"), row("tea")])
    first = sum(bool(block.decide(values, seed).keep[0]) for seed in range(1000))
    assert 430 < first < 570


def test_long_rows_are_sampled_evenly(tmp_path):
    block = resampler(tmp_path, max_features=16, buckets=1000)
    text = " ".join(sentences(4, 30))
    (described,) = block.describe([row(text)])
    buckets = np.sort(word_ngram_buckets(text, 2, 1000))
    assert described[0] == len(buckets) > 16 and described[1] == 0
    assert described[2:].tolist() == [buckets[int((i + 0.5) * len(buckets) / 16)] for i in range(16)]
    exact = resampler(tmp_path, max_features=4000, buckets=1000)
    rows = [row(" ".join(sentences(seed, 30))) for seed in range(20)] + [row(" ".join(scrambled(seed, 30))) for seed in range(20)]
    near, true = block.log_weights(block.describe(rows)), exact.log_weights(exact.describe(rows))
    assert np.corrcoef(near, true)[0, 1] > 0.8
    assert 0.5 < np.abs(near).mean() / np.abs(true).mean() < 2  # 16 features stand for some 400


@pytest.mark.parametrize(
    ("fields", "kept"), [({"keep_share": 0.25}, 100), ({"keep": "rows", "keep_rows": 9999}, 400), ({"keep_share": 0}, 0)]
)
def test_how_many_rows_are_drawn(tmp_path, fields, kept):
    block = resampler(tmp_path, **fields)
    assert block.decide(block.describe(mixture()), 0).keep.sum() == kept


def test_resampling_is_the_same_in_any_chunks_and_from_a_map(tmp_path, monkeypatch):
    block = resampler(tmp_path)
    rows = mixture()
    values = block.describe(rows)
    assert np.array_equal(np.concatenate([block.describe(rows[:7]), block.describe(rows[7:])]), values)
    np.save(tmp_path / "values.npy", values)
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    monkeypatch.setattr("data.blocks.dsir._CHUNK_ROWS", 37)
    assert np.array_equal(block.decide(mapped, 5).keep, block.decide(values, 5).keep)
    assert not np.array_equal(block.decide(mapped, 5).keep, block.decide(mapped, 6).keep)
    assert block.decide(values[:0], 0).keep.shape == (0,)


TEXT = "rain likes the king, and a dog hears the tea sees of aunt."
LOAD = """
import sys
from pathlib import Path
from data.blocks.base import Row
from data.forms import Example
from data.records import Message
from {module} import {name} as Block, {name}Settings as Settings
block = Block(Settings(**{settings}))
block.load(Path({scratch!r}))
row = Row(0, "file", 1, Example((Message("user", "Why?"),), completion={text!r}))
print({measure})
"""


@pytest.mark.parametrize(
    ("make", "fields", "measure"),
    [
        (Perplexity, {"text": "good", "order": 3}, "block.perplexity(row.example.completion)"),
        (Classifier, {"good": "good", "bad": "bad"}, "block.probability(row.example.completion)"),
        (DSIR, {"target": "good"}, "block.log_weights(block.describe([row])).tolist()"),
    ],
)
def test_what_prepare_writes_is_the_same_again_and_serves_another_process(make, fields, measure, tmp_path):
    files = good_and_bad(tmp_path)
    fields = {name: files.get(value, value) for name, value in fields.items()}
    block = make(getattr(sys.modules[make.__module__], f"{make.__name__}Settings")(**fields))
    written = []
    for scratch in (tmp_path / "one", tmp_path / "two"):
        scratch.mkdir()
        block.prepare(7, scratch)
        arrays = {path.name: dict(np.load(path, allow_pickle=False)) for path in scratch.glob("*.npz")}
        files_written = {path.name: path.read_bytes() for path in scratch.iterdir() if path.suffix != ".npz"}
        written.append(files_written | {f"{name} {key}": each[key].tolist() for name, each in arrays.items() for key in each})
    assert written[0] == written[1]
    code = LOAD.format(
        module=make.__module__, name=make.__name__, settings=fields, scratch=str(tmp_path / "one"), text=TEXT, measure=measure
    )
    there = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={"PYTHONHASHSEED": "7"})
    assert there.stdout.strip() == str(measured_here(block, measure)), there.stderr


def measured_here(block, measure: str):
    """What the other process measures, measured here."""
    if measure.startswith("block.log_weights"):
        return block.log_weights(block.describe([row(TEXT)])).tolist()
    return block.perplexity(TEXT) if "perplexity" in measure else block.probability(TEXT)


def test_buckets_are_of_all_sizes_and_distinct():
    words = word_ngram_buckets("The cat, the", 2, 2**24)
    assert len(words) == 4 + 3 and words[0] == words[3] and len(set(words.tolist())) == 6
    assert word_ngram_buckets("the cat", 2, 2**24)[2] not in word_ngram_buckets("cat the", 2, 2**24)
    characters = character_ngram_buckets("Ab\n c", 2, 3, 2**24)  # " ab c "
    assert len(characters) == 5 + 4 and len(set(characters.tolist())) == 9
    assert len(word_ngram_buckets("", 3, 16)) == 0 and len(character_ngram_buckets("", 5, 8, 16)) == 0
    counts = np.bincount(word_ngram_buckets(" ".join(f"word{i}" for i in range(4000)), 2, 64), minlength=64)
    assert counts.min() > 80 and counts.max() < 175  # 7,999 / 64 = 125


def test_reference_texts_in_every_form(tmp_path):
    (tmp_path / "a.txt").write_bytes("one\n\n two\r\nthr\xe9e\n".encode("latin-1"))
    with gzip.open(tmp_path / "b.txt.gz", "wt") as file:
        file.write("zipped\n")
    (tmp_path / "c.jsonl").write_text('{"text": "plain"}\nnot json\n{"text": " "}\n{"text": "more"}\n')
    (tmp_path / "d.json").write_text(json.dumps([{"instruction": "Do", "output": "done"}, {"instruction": "Do", "output": ""}]))

    def texts(name, scope="imitated"):
        return [text.strip() for text in reference_texts(tmp_path / name, scope)]

    assert texts("a.txt") == ["one", "two", "thr\ufffde"] and texts("b.txt.gz") == ["zipped"]
    assert texts("c.jsonl") == ["plain", "more"]
    assert texts("d.json") == ["done"] and texts("d.json", "document") == ["Do\ndone"]
    (tmp_path / "e.txt").write_text(" \n")
    with pytest.raises(ValueError, match=r"e.txt holds no usable text"):
        texts("e.txt")
