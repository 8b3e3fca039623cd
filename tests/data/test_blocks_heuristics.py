"""Gopher, C4 and FineWeb rules: each by a value worked out by hand, and the verdicts of datatrove's own filters on the same texts."""

import json
import time

import pytest

from data.blocks import heuristics
from data.blocks.base import Block, Rejected, Row
from data.blocks.heuristics import C4, C4Settings, FineWeb, FineWebSettings, Gopher, GopherSettings, sentences_in
from data.blocks.repetition import (
    duplicate_lines,
    duplicate_ngram_shares,
    duplicate_paragraphs,
    duplicates,
    tokens_of,
    top_ngram_share,
    words_in,
)
from data.forms import Example
from data.records import Message

PROSE = "The cat and the dog have to be with that old man of the sea."  # 15 words, all eight stop words
OFF = {"min_stop_words": 0, "judged_from_words": 0, "max_top_ngrams": (1, 1, 1), "max_duplicate_ngrams": (1, 1, 1, 1, 1, 1)}


def row(completion: str) -> Row:
    return Row(0, "file", 1, Example((Message("user", "Why?"),), completion=completion))


def gopher(**fields) -> Gopher:
    return Gopher(GopherSettings(**{**OFF, **fields}))


def reason(fault):
    return fault and fault[0]


def test_tokens_by_hand():
    assert tokens_of("It's well-known: 3.5!") == ["It's", "well-known", ":", "3", ".", "5", "!"]
    assert tokens_of("naïve 東京 snake_case --x \u2019tis") == ["naïve", "東京", "snake_case", "-", "-", "x", "\u2019", "tis"]
    assert words_in(["a", ":", "3", "_", "_x"]) == ["a", "3", "_x"]


def test_repetition_measures_by_hand():
    assert duplicates(["a", "bb", "bb", "bb"]) == (2, 4)
    assert duplicate_lines("ab\ncd\nab\nab") == (2 / 4, 4 / 11)
    assert duplicate_paragraphs("ab\ncd\n\nx\n\n\nab\ncd") == (1 / 3, 5 / 16)
    assert top_ngram_share(["a", "b", "a", "b", "a", "b"], 2, 11) == 9 / 11
    assert top_ngram_share(["a", "b", "c", "d"], 2, 7) == 0
    assert duplicate_ngram_shares(["a", "b", "c", "a", "b", "c"], (2, 3, 4), 11) == {2: 2 / 11, 3: 3 / 11, 4: 0}
    # Overlapping repeats count once: of a a a a, the 2-grams are aa at 0; aa at 1 (seen, 2 characters, skip 2); then nothing.
    assert duplicate_ngram_shares(["a", "a", "a", "a"], (2,), 7) == {2: 2 / 7}


@pytest.mark.parametrize(
    ("fields", "text", "expected"),
    [
        ({"min_words": 3}, "two words", "too_few_words"),
        ({"min_words": 2}, "two words ! !", None),  # signs are no words
        ({"max_words": 2}, "now three words", "too_many_words"),
        ({"min_mean_word_characters": 3}, "ab abc", "mean_word_length"),  # 2.5
        ({"min_mean_word_characters": 3}, "ab abcd", None),  # 3.0
        ({"max_mean_word_characters": 10}, "abcdefghijk abcdefghijk", "mean_word_length"),
        ({}, "one two three # four five six seven eight # nine", "hashes"),  # 2 of 11 tokens
        ({"max_symbols_per_word": 0.2}, "one two three # four five six seven eight # nine", None),
        ({}, "well… this… ends", "ellipses"),
        ({}, "one two\n- three four\n- five six", None),
        ({"max_bullet_lines": 0.6}, "one two\n- three four\n  • five six", "bullet_lines"),  # 2 of 3
        ({"max_symbols_per_word": 9}, "one two…\nthree four...\nfive six", "ellipsis_lines"),
        ({"min_alphabetic": 0.8}, "one two three 4", "not_alphabetic"),  # 3 of 4
        ({"min_alphabetic": 0.75}, "one two three 4", None),
        ({"min_stop_words": 2}, "the cat saw a bird", "stop_words"),  # only "the"
        ({"min_stop_words": 2}, "the cat of Rome", None),
        ({}, "one two\nsix ten\none two\none two", "duplicate_lines"),  # 2 of 4 lines
        ({"max_duplicate_lines": 1}, "one two\nsix ten\none two\none two", "duplicate_line_characters"),  # 14 of 31
        ({}, "one two\n\nsix ten\n\none two\n\none two", "duplicate_paragraphs"),
        ({"max_top_ngrams": (0.2, 1, 1)}, "red fox saw red fox", "top_2_gram"),  # 14 of 19
        ({"max_top_ngrams": (1, 0.18, 1)}, "a red fox saw a red fox", "top_3_gram"),
        ({"max_top_ngrams": (1, 1, 0.16)}, "a red fox saw a red fox saw", "top_4_gram"),
        ({"max_duplicate_ngrams": (0.15, 1, 1, 1, 1, 1)}, "a b c d e f " * 2, "duplicate_5_grams"),
        ({"max_duplicate_ngrams": (1, 1, 1, 1, 1, 0.1)}, "a b c d e f g h i j " * 2, "duplicate_10_grams"),
        ({"max_duplicate_ngrams": (1, 1, 1, 1, 1, 0.1)}, "a b c d e f g h i " * 2, None),
    ],
)
def test_each_gopher_rule_by_hand(fields, text, expected):
    fields = {"min_mean_word_characters": 1, "min_words": 1, **fields}
    assert reason(gopher(**fields).fault(text)) == expected


def test_short_answers_pass_the_rules_on_ratios_by_default():
    block = Gopher(GopherSettings())
    for text in ("Paris", "1. 4\n2. 5\n3. 6", "No. No. No.", "# # #a"):
        assert block(row(text)) == row(text)
    assert isinstance(block(row(":-(")), Rejected)  # no word at all
    rejected = block(row("the end and " * 30))
    assert isinstance(rejected, Rejected) and rejected.reason == "top_2_gram" and rejected.detail.endswith("the most is 0.2")
    assert reason(Gopher(GopherSettings.paper()).fault("Paris")) == "too_few_words"


def test_a_prompt_without_answer_is_kept():
    prompt = Row(0, "file", 1, Example((Message("user", "#"),)))
    assert all(block(prompt) is prompt for block in (Gopher(GopherSettings()), C4(C4Settings()), FineWeb(FineWebSettings())))


def test_sentences_by_hand():
    counted = {"Hi! 3.5 is it... ok": 3, 'He said "Go."': 1, "no end": 1, "": 0, "One. Two? Three!!! ": 3, "......x": 1, "e.g. this": 2}
    assert {line: sentences_in(line) for line in counted} == counted
    began = time.process_time()
    assert sentences_in("." * 20_000 + "x") == 1
    assert time.process_time() - began < 0.2  # 4 * 10^8 steps where every dot began a search


@pytest.mark.parametrize(
    ("fields", "text", "kept"),
    [
        ({"terminal_punctuation": True}, 'A line.\nMenu\nAsk?\n"Quote"\nand so...\n', 'A line.\nAsk?\n"Quote"\n'),
        ({"min_line_words": 3}, "One two three\ntoo short\n\nfour five six", "One two three\nfour five six"),
        ({"max_word_characters": 5}, "short\nlooooong\nend", "short\nend"),
        ({"javascript": True}, "Please enable JavaScript now.\nText.", "Text."),
        ({}, "We use cookies here.\nSee our Privacy Policy.\n  Text.  \n", "  Text.  \n"),
        ({"policy": False}, "We use cookies here.\n", "We use cookies here.\n"),
        ({"citations": True}, "So it is[12] said[edit].[citation needed] a[i]\n", "So it is said. a[i]\n"),
        ({"min_line_words": 3}, "One two three\n```\nx\n```\ny\n", "One two three\n```\nx\n```\n"),
        ({"min_line_words": 3, "spare_code": False}, "One two three\n```\nx\n```\ny\n", "One two three\n"),
    ],
)
def test_each_c4_line_rule_by_hand(fields, text, kept):
    assert C4(C4Settings(**fields)).kept(text) == kept


@pytest.mark.parametrize(
    ("fields", "text", "expected"),
    [
        ({}, "A lot of Lorem Ipsum here.", "lorem_ipsum"),
        ({"lorem_ipsum": False}, "A lot of Lorem Ipsum here.", None),
        ({"curly_bracket": True}, "if (x) { y }", "curly_bracket"),
        ({}, "if (x) { y }", None),
        ({"min_sentences": 3}, "One. Two.", "too_few_sentences"),
        ({"min_sentences": 3}, "One. Two.\nThree", None),
        ({"bad_words": ("darn it", "heck")}, "Oh HECK!", "bad_word"),
        ({"bad_words": ("darn it", "heck")}, "Check the heckler.", None),
    ],
)
def test_each_c4_rejecting_rule_by_hand(fields, text, expected):
    assert reason(C4(C4Settings(**fields)).fault(text)) == expected


def test_c4_edits_rows_and_rejects_what_is_left_empty():
    block = C4(C4Settings(min_line_words=2))
    new = block(row("Menu\nA real line."))
    assert isinstance(new, Row) and new.example.completion == "A real line." and new.example.prompt[0].content == "Why?"
    untouched = row("A real line.\r\n  and  another\n")
    assert block(untouched) is untouched
    emptied = block(row("Menu\nHome"))
    assert isinstance(emptied, Rejected) and emptied.reason == "emptied"


@pytest.mark.parametrize(
    ("fields", "text", "expected"),
    [
        ({"min_punctuated_lines": 0.5}, "One.\ntwo\nthree", "unpunctuated_lines"),  # 1 of 3
        ({"min_punctuated_lines": 0.3}, "One.\ntwo\nthree", None),
        ({"min_punctuated_lines": 1}, "什么\uff1f\nOne!\n", None),
        ({"max_short_lines": 0.6, "short_line_characters": 5}, "12345\n123\n123456", "short_lines"),  # 2 of 3
        ({"max_short_lines": 0.7, "short_line_characters": 5}, "12345\n123\n123456", None),
        ({"max_duplicate_line_characters": 0.3}, "one two three\nab\nab\nab", None),  # 4 of 19
        ({"max_duplicate_line_characters": 0.2}, "one two three\nab\nab\nab", "duplicate_line_characters"),
        ({"max_lines_per_word": 0.3}, "a\nb\nc d", "lines_per_word"),  # 2 of 4
        ({"max_lines_per_word": 0.5}, "a\nb\nc d", None),
        ({}, "\n \n", "empty"),
    ],
)
def test_each_fineweb_rule_by_hand(fields, text, expected):
    fields = {"judged_from_words": 0, "max_lines_per_word": 9, "max_duplicate_line_characters": 1, **fields}
    assert reason(FineWeb(FineWebSettings(**fields)).fault(text)) == expected


def test_fineweb_judges_long_texts_only_by_default():
    assert FineWeb(FineWebSettings()).fault("a\na\na\na") is None
    assert reason(FineWeb(FineWebSettings()).fault("word\n" * 60)) == "duplicate_line_characters"
    assert reason(FineWeb(FineWebSettings.paper()).fault("a list\nof things")) == "unpunctuated_lines"


def test_they_are_blocks():
    assert all(isinstance(block, Block) for block in (Gopher(GopherSettings()), C4(C4Settings()), FineWeb(FineWebSettings())))


@pytest.fixture(scope="module")
def real_texts(shared_data):
    """Answers and articles of several published sets, and some spoilt by hand, so that every rule finds something."""
    alpaca = [each["output"] for each in json.loads((shared_data / "demo-sft-dpo-kto/alpaca_en_demo.json").read_text())]
    pairs = json.loads((shared_data / "demo-sft-dpo-kto/dpo_en_demo.json").read_text())
    dialogues = [each[key]["value"] for each in pairs for key in ("chosen", "rejected")]
    articles = (shared_data / "demo-sft-dpo-kto/wiki_demo.txt").read_text().splitlines()
    texts = [text for text in (*alpaca[:300], *dialogues[:200], *(article[:4000] for article in articles)) if text.strip()]
    spoilt = [(text + "\n") * 2 for text in texts[::20]] + [text.replace(" ", " # ") for text in texts[1::40]]
    return texts + spoilt + [text.replace(".", "...\n") for text in texts[2::20]]


def datatrove_filter(monkeypatch, module: str, name: str, **fields):
    """One of datatrove's filters, reading words and sentences as we do: what is compared are the rules."""
    filters = pytest.importorskip(f"datatrove.pipeline.filters.{module}")
    monkeypatch.setattr(filters, "split_into_words", lambda text, language: tokens_of(text), raising=False)
    monkeypatch.setattr(filters, "split_into_sentences", lambda line, language: range(sentences_in(line)), raising=False)
    return getattr(filters, name)(**fields)


def verdicts(reference, texts) -> list[str | None]:
    from datatrove.data import Document

    answers = [reference.filter(Document(text=text, id="0")) for text in texts]
    return [None if answer is True else answer[1] for answer in answers]


# datatrove's reason -> ours
GOPHER = {
    "gopher_short_doc": "too_few_words",
    "gopher_below_avg_threshold": "mean_word_length",
    "gopher_above_avg_threshold": "mean_word_length",
    "gopher_too_many_hashes": "hashes",
    "gopher_too_many_ellipsis": "ellipses",
    "gopher_too_many_bullets": "bullet_lines",
    "gopher_too_many_end_ellipsis": "ellipsis_lines",
    "gopher_enough_stop_words": "stop_words",
}
REPETITION = {
    "dup_para_frac": "duplicate_paragraphs",
    "dup_para_char_frac": "duplicate_paragraph_characters",
    "dup_line_frac": "duplicate_lines",
    "dup_line_char_frac": "duplicate_line_characters",
    **{f"top_{n}_gram": f"top_{n}_gram" for n in (2, 3, 4)},
    **{f"duplicated_{n}_n_grams": f"duplicate_{n}_grams" for n in range(5, 11)},
}


def test_gopher_quality_is_datatroves(monkeypatch, real_texts):
    """All but one rule: datatrove takes the share of tokens with a letter, signs among them; the paper, and we, that of words."""
    reference = datatrove_filter(monkeypatch, "gopher_quality_filter", "GopherQualityFilter", max_non_alpha_words_ratio=None)
    ours = GopherSettings.paper().model_copy(
        update={
            "min_alphabetic": 0,
            "max_duplicate_lines": 1,
            "max_duplicate_paragraphs": 1,
            "max_duplicate_line_characters": 1,
            "max_duplicate_paragraph_characters": 1,
            "max_top_ngrams": (9, 9, 9),
            "max_duplicate_ngrams": (9,) * 6,
        }
    )
    expected = [GOPHER[found] if found else None for found in verdicts(reference, real_texts)]
    assert len({found for found in expected if found}) >= 4 and expected.count(None) > 100
    assert [reason(Gopher(ours).fault(text)) for text in real_texts] == expected


def test_gopher_repetition_is_datatroves(monkeypatch, real_texts):
    reference = datatrove_filter(monkeypatch, "gopher_repetition_filter", "GopherRepetitionFilter")
    ours = GopherSettings(
        min_words=0,
        judged_from_words=0,
        min_mean_word_characters=0,
        max_mean_word_characters=10**6,
        max_symbols_per_word=9,
        max_bullet_lines=1,
        max_ellipsis_lines=1,
        min_alphabetic=0,
        min_stop_words=0,
    )
    texts = [text for text in real_texts if len(tokens_of(text)) >= 40]  # in shorter ones a single n-gram can exceed the share
    expected = [REPETITION[found] if found else None for found in verdicts(reference, texts)]
    assert len({found for found in expected if found}) >= 3 and expected.count(None) > 100
    assert [reason(Gopher(ours).fault(text)) for text in texts] == expected


def test_c4_is_datatroves(monkeypatch, real_texts):
    from datatrove.data import Document

    reference = datatrove_filter(monkeypatch, "c4_filters", "C4QualityFilter")
    block = C4(C4Settings.paper())
    for text in (
        *real_texts,
        "Terms of use apply to it. " * 5,
        "Lorem ipsum dolor sit. " * 5,
        "Enable JavaScript in it. " * 5 + "\nNo, do not.",
    ):
        document = Document(text=text, id="0")
        answer = reference.filter(document)
        assert reason(block.fault(text)) == (None if answer is True else answer[1]), text
        if answer is True:
            assert [line.strip() for line in block.kept(text).splitlines()] == document.text.splitlines()


def test_fineweb_is_datatroves(monkeypatch, real_texts):
    reference = datatrove_filter(monkeypatch, "fineweb_quality_filter", "FineWebQualityFilter")
    names = {"line_punct_ratio": "unpunctuated_lines", "short_line_ratio": "short_lines", "char_dup_ratio": "duplicate_line_characters"}
    names |= {"list_ratio": "lines_per_word", "empty": "empty"}
    expected = [names[found] if found else None for found in verdicts(reference, [*real_texts, " \n", "a\nb\nc."])]
    assert len({found for found in expected if found}) >= 4
    assert [reason(FineWeb(FineWebSettings.paper()).fault(text)) for text in [*real_texts, " \n", "a\nb\nc."]] == expected


def test_terminal_punctuation_is_datatroves():
    text = pytest.importorskip("datatrove.utils.text")
    assert set(heuristics._TERMINAL) <= text.TERMINAL_PUNCTUATION | {"."}
