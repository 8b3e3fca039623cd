"""Decontamination by shared n-grams: what is found, what is left, what is said of it."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from data.blocks.base import Block, Rejected, Row
from data.blocks.decontaminate import Decontaminate, DecontaminateSettings, EvaluationFile
from data.forms import Example
from data.records import Message

# Twenty-one words each.
QUESTION = "Weng earns twelve dollars an hour for babysitting; yesterday she just did fifty minutes. How much money could Weng have earned?"
OTHER = "Natalia sold clips to forty eight of her friends in April and then she sold half as many clips in May"


def row(text, answer=None):
    return Row(0, "planted", 7, Example((Message("user", text),), completion=answer))


@pytest.fixture
def block(tmp_path):
    def make(texts, **settings):
        made = Decontaminate(DecontaminateSettings(**settings))
        made.against(texts, tmp_path)
        made.load(tmp_path)
        return made

    return make


def detail(verdict):
    assert isinstance(verdict, Rejected) and verdict.reason == "contaminated"
    return verdict.detail


def test_a_question_planted_in_the_middle_of_an_answer_is_found(block):
    checks = block([OTHER, QUESTION])
    assert isinstance(checks, Block)
    answer = f"Of course. Here is one that I know: {QUESTION.upper()} And that is all that I know of it."
    verdict = checks(row("Tell me a riddle.", answer))
    shared = "weng earns twelve dollars an hour for babysitting yesterday she just did fifty"
    assert detail(verdict) == f"evaluation text 2 has {shared!r} too; 50% of the words are in shared n-grams"  # 21 of 42
    clean = row("Tell me a riddle.", "Weng earns money. How much money could she have earned in April and then in May?")
    assert checks(clean) is clean


@pytest.mark.parametrize(("shared_words", "found"), [(12, False), (13, True), (20, True)])
def test_thirteen_words_in_a_row_are_too_many(block, shared_words, found):
    text = "before it " + " ".join(QUESTION.split()[:shared_words]) + " after it"
    assert isinstance(block([QUESTION])(row(text)), Rejected) is found


def test_every_place_of_an_ngram_is_seen(block):
    """Each run of 13 words of the question, alone, is enough."""
    checks, words = block([QUESTION]), QUESTION.split()
    for start in range(len(words) - 12):
        assert isinstance(checks(row(" ".join(words[start : start + 13]))), Rejected)


def test_words_across_a_turn_count_as_they_are_read(block):
    words = QUESTION.split()
    assert isinstance(block([QUESTION])(row(" ".join(words[:10]), " ".join(words[10:]))), Rejected)


def test_shorter_evaluation_texts_are_looked_for_whole_down_to_a_length(block):
    nine = "who wrote the long book about the white whale"
    checks = block([nine, "forty two", QUESTION])
    assert detail(checks(row(f"So, {nine}? Melville."))).startswith(f"evaluation text 1 has {nine!r} too")
    assert not isinstance(checks(row("who wrote the long book about the white")), Rejected)
    assert not isinstance(checks(row("the answer is forty two")), Rejected)
    assert isinstance(block([nine, "forty two"], shortest_words=2)(row("the answer is forty two")), Rejected)


def test_a_share_can_be_asked_for(block):
    words = QUESTION.split()
    text = " ".join([*words, *(f"new{number}" for number in range(21))])  # 21 of 42 words
    assert isinstance(block([QUESTION], share=0.5)(row(text)), Rejected)
    assert not isinstance(block([QUESTION], share=0.51)(row(text)), Rejected)


def test_the_first_text_that_has_an_ngram_is_named(block):
    assert "evaluation text 1 has" in detail(block([QUESTION, QUESTION.lower() + " Say it."])(row(QUESTION)))


def test_punctuation_case_and_width_hide_nothing(block):
    disguised = "  ".join(f"*{word.upper()}*" for word in QUESTION.split()).replace("WENG", "\uff37\uff25\uff2e\uff27")
    assert isinstance(block([QUESTION])(row(disguised)), Rejected)


def test_files_are_read_in_all_their_forms(tmp_path, block):
    third = "the quick brown fox jumps over the lazy dog while seven other animals watch it"
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"question": QUESTION, "note": OTHER, "n": 3}) + "\n" + json.dumps({"question": "what", "n": 1}) + "\n"
    )
    (tmp_path / "b.txt").write_text(f"short\n{third}\n")
    nested = {"turns": [{"role": "user", "content": OTHER}]}
    (tmp_path / "c.json").write_text(json.dumps([nested]))
    files = [{"path": str(tmp_path / "a.jsonl"), "columns": ["question"]}, {"path": str(tmp_path / "b.txt")}]
    checks = block([], files=files)
    assert checks.settings.paths() == [tmp_path / "a.jsonl", tmp_path / "b.txt"]
    assert [isinstance(checks(row(text)), Rejected) for text in (QUESTION, OTHER, third)] == [True, False, True]
    assert json.loads((tmp_path / "index.json").read_text()) == {"lengths": [13], "head_words": 8, "texts": 4, "too_short": 2}
    nested_checks = block([], files=[{"path": str(tmp_path / "c.json")}])
    assert isinstance(nested_checks(row(OTHER)), Rejected)


def test_what_cannot_be_read_is_refused(tmp_path, block):
    (tmp_path / "a.jsonl").write_text('{"question": "what"}\nnot json\n')
    with pytest.raises(ValueError, match=r"a\.jsonl:2 cannot be read"):
        block([], files=[{"path": str(tmp_path / "a.jsonl")}])
    (tmp_path / "a.jsonl").write_text('{"question": "what"}\n')
    with pytest.raises(ValueError, match=r"none of the columns \['answer'\]"):
        block([], files=[{"path": str(tmp_path / "a.jsonl"), "columns": ["answer"]}])
    with pytest.raises(FileNotFoundError, match="no data file"):
        EvaluationFile(path=str(tmp_path / "none.txt")).paths()


def test_a_check_against_nothing_is_refused(block):
    with pytest.raises(ValueError, match="none of 2 evaluation texts has 8 words"):
        block(["yes", "no"])


@pytest.mark.parametrize("settings", [{"shortest_words": 14}, {"ngram_words": 1}, {"share": 1.5}, {"window": 200}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(ValidationError):
        DecontaminateSettings(**settings)


def test_what_is_written_is_sorted_and_not_pickled(tmp_path, block):
    block([QUESTION, OTHER])
    for name in ("hashes", "heads"):
        array = np.load(tmp_path / f"{name}.npy", allow_pickle=False)
        assert array.dtype == np.uint64 and (np.diff(array) > 0).all()
    assert np.load(tmp_path / "texts.npy", allow_pickle=False).shape == np.load(tmp_path / "hashes.npy").shape == (9 + 9,)


def test_hostile_text_passes(block):
    checks = block([QUESTION, "\ud800 " * 20])
    for text in ("", "\ud800", "\x00" * 100, "word " * 50_000, "a" * 1_000_000, "東" * 100):
        rows = row(text)
        assert checks(rows) is rows
    assert isinstance(block(["東京都渋谷区神南一丁目十九番十一号"])(row("住所は東京都渋谷区神南一丁目十九番十一号です")), Rejected)


def test_gsm8k_train_shares_little_with_its_test_set_and_all_of_what_is_planted(shared_data, block):
    def questions(name):
        return [json.loads(line)["question"] for line in (shared_data / f"gsm8k/{name}.jsonl").read_text().splitlines()]

    test, train = questions("test"), questions("train")
    checks = block(test)
    assert sum(isinstance(checks(row("Solve this.", f"Sure. {text} Now solve it.")), Rejected) for text in test) == sum(
        len(text.split()) >= 8 for text in test
    )
    assert sum(isinstance(checks(row(text)), Rejected) for text in train) < 0.002 * len(train)
