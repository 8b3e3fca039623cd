"""The benchmark of curation: the corpus holds what it says, and our side finds it. Nothing is timed here."""

import json
import random
from collections import Counter

import pytest

from tests.bench.curation import documents, exponent, questions, sentences, write_corpus
from tests.bench.curation_sides import ours


@pytest.fixture
def shared(tmp_path):
    """A folder like that of the real sets, of made-up sentences."""
    generator = random.Random(0)
    words = [f"word{number}" for number in range(2000)]

    def said(length):
        return " ".join(generator.choices(words, k=length)).capitalize() + "."

    folder = tmp_path / "shared" / "gsm8k"
    folder.mkdir(parents=True)
    for name, count in (("train", 600), ("test", 20)):
        rows = [{"question": said(18), "answer": said(12)} for _ in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def test_growth_by_hand():
    assert exponent({10: 1.0, 100: 5.0, 1000: 100.0}) == pytest.approx(1)
    assert exponent({10: 1.0, 1000: 10_000.0}) == pytest.approx(2)


def test_the_corpus_is_the_same_every_time_and_its_sentences_are_not_those_of_the_evaluation(shared):
    assert list(documents(shared, 50)) == list(documents(shared, 50))
    assert len(sentences(shared)) == 1200 and not set(sentences(shared)) & set(questions(shared))


def test_our_side_finds_what_is_planted(shared, tmp_path):
    planted = write_corpus(shared, 900, tmp_path / "corpus")
    assert sum(planted.values()) == 900 and all(planted[kind] for kind in ("new", "copy", "near", "evaluation"))
    (tmp_path / "work" / "kept").mkdir(parents=True)
    ours(tmp_path / "corpus", tmp_path / "work", 1, lambda: questions(shared))
    lines = (tmp_path / "work/kept/all.jsonl").read_text().splitlines()
    kept = Counter(json.loads(line)["id"].rpartition("-")[2] for line in lines)
    assert kept["copy"] == kept["evaluation"] == 0
    assert kept["near"] < 0.4 * planted["near"]
