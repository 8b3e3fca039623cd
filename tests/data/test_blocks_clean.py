"""Unicode and white space: values by hand, what must not change, and that a second pass changes nothing."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.blocks.base import Block, Rejected, Row
from data.blocks.clean import Unicode, UnicodeSettings, Whitespace, WhitespaceSettings, without_surrogates
from data.blocks.scopes import changed_in, fenced_parts, texts_in
from data.forms import Example
from data.records import Message

UNICODE = Unicode(UnicodeSettings())
WHITESPACE = Whitespace(WhitespaceSettings())


def row(prompt: str = "Why?", **fields) -> Row:
    return Row(0, "file", 1, Example((Message("user", prompt),), **fields))


# The characters that rules are about, and others around them.
ALPHABET = st.sampled_from(
    [
        *list("ab `~\n\r\t\x00\x07\x1b\x85\xa0\xad.é中א😀#|"),
        "́",
        "\u200b",
        "\u200c",
        "\u200d",
        "\u2028",
        "\u202e",
        "\u2066",
        "\u3000",
        "ﬁ",
        "\ufeff",
        "�",
        "�",
        "Ã",
        "©",
        "â",
        "€",
        "™",
        "```",
        "~~~",
        "\r\n",
        "\n\n",
        "\U000e0041",
        "󠄀",
        "️",
        "\x0c",
        "ᅟ",
    ]
)
TEXTS = st.lists(ALPHABET, max_size=40).map("".join) | st.text(max_size=40)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("cafe\u0301", "café"),  # NFC
        ("cafÃ© â€™", "café \u2019"),  # decoded as Windows-1252
        ("a\x00b\x07c\x1b[0m\td\r\n", "abc[0m\td\r\n"),  # control characters go, tab and line ends stay
        ("in\u200bvis\ufeffi\u2060b\u00adle", "invisible"),
        ("hidden\U000e0069\U000e0067", "hidden"),  # tag characters spell "ig"
        ("a\u200db", "ab"),
        ("👩\u200d💻 \u0645\u06cc\u200c\u062e\u0648", "👩\u200d💻 \u0645\u06cc\u200c\u062e\u0648"),  # emoji and Persian need theirs
        ("x\U000e0100 葛\U000e0100", "x 葛\U000e0100"),  # an ideograph's variant stays
        ("user\u202enimda\u202c \u2066x\u2069", "usernimda x"),
        ("\ud83d\ude00 \ud800", "😀 \ufffd"),
        ("x² ﬁ \uff21 “quoted” <b>&amp;</b>", "x² ﬁ \uff21 “quoted” <b>&amp;</b>"),  # what is meant stays
        ("plain text, 3 + 4 = 7\n", "plain text, 3 + 4 = 7\n"),
    ],
)  # fmt: skip
def test_characters_are_repaired(text, clean):
    assert UNICODE.repair(text) == clean


def test_each_repair_can_be_left_out():
    off = Unicode(UnicodeSettings(form="none", repair_mojibake=False, remove_control=False, remove_zero_width=False, remove_bidi=False))
    text = "e\u0301 Ã© \x07 \u200b \u202e"
    assert off.repair(text) == text
    assert off.repair("\ud800") == "\ufffd"  # no file can hold it
    assert Unicode(UnicodeSettings(form="NFKC")).repair("x² ﬁ \uff21") == "x2 fi A"


def test_surrogates_by_hand():
    assert without_surrogates("a\ud83d\ude00b\udc00") == "a😀b\ufffd"
    assert without_surrogates("é") == "é"


@pytest.mark.parametrize(
    ("text", "even"),
    [
        ("a  \nb\t\n\n\n\nc", "a\nb\n\nc"),
        ("\n \n  a\r\nb\rc\u2028d\n\n", "  a\nb\nc\nd"),
        ("a\u00a0b\u3000c", "a b c"),
        ("\tif x:", "    if x:"),
        ("two  spaces   inside", "two  spaces   inside"),
        ("```py\nx = 1  \n\n\n\n\ty\r\n```", "```py\nx = 1  \n\n\n\n\ty\r\n```"),
        ("a  \n\n\n\n```\n  \tb  \n```\nc  \n", "a\n\n```\n  \tb  \n```\nc"),
        ("- item\n  ```\n  x  \n  ```\nafter  ", "- item\n  ```\n  x  \n  ```\nafter"),  # a fence in a list is indented
        ("```\nnever closed  \n\n\n\n x", "```\nnever closed  \n\n\n\n x"),
        ("~~~\n```\na  \n~~~\nb  ", "~~~\n```\na  \n~~~\nb"),
        ("inline ```code``` here  \nend  ", "inline ```code``` here\nend"),
    ],
)
def test_white_space_is_made_even(text, even):
    assert WHITESPACE.even(text) == even


def test_white_space_options():
    keep = Whitespace(WhitespaceSettings(odd_spaces=False, tab_spaces=0, trailing_spaces=False, max_blank_lines=2, ends=False))
    text = "\n a\u00a0\t \n\n\nb \n"
    assert keep.even(text) == text
    assert keep.even("a\n\n\n\nb") == "a\n\n\nb"
    assert Whitespace(WhitespaceSettings(max_blank_lines=0)).even("a\n\n\nb") == "a\nb"


@settings(max_examples=400, deadline=None)
@given(TEXTS)
def test_a_second_pass_changes_nothing(text):
    repaired = UNICODE.repair(text)
    assert UNICODE.repair(repaired) == repaired
    repaired.encode("utf-8")
    folded = Unicode(UnicodeSettings(form="NFKC")).repair(text)
    assert Unicode(UnicodeSettings(form="NFKC")).repair(folded) == folded
    for block in (WHITESPACE, Whitespace(WhitespaceSettings(tab_spaces=2, max_blank_lines=0, ends=False))):
        even = block.even(text)
        assert block.even(even) == even


@settings(max_examples=300, deadline=None)
@given(TEXTS)
def test_fenced_parts_are_the_text_and_code_is_not_touched(text):
    parts = list(fenced_parts(text))
    assert "".join(part for _, part in parts) == text
    code = [part for is_code, part in parts if is_code]
    after = [part for is_code, part in fenced_parts(Whitespace(WhitespaceSettings(ends=False)).even(text)) if is_code]
    assert after == code


def test_a_row_is_edited_everywhere_and_an_unchanged_row_is_the_same():
    dirty = row("a\u200b?", completion="b\u200b", chosen="b\u200b", rejected="c\u200b", ranked=("d\u200b", "e"))
    new = UNICODE(dirty)
    assert isinstance(new, Row)
    example = new.example
    assert (example.prompt[0].content, example.completion, example.rejected, example.ranked) == ("a?", "b", "c", ("d", "e"))
    clean = row(completion="b")
    assert UNICODE(clean) is clean and WHITESPACE(clean) is clean


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (row(completion="\u200b\u200b"), "emptied"),
        (row("\u200b", completion="x"), "emptied"),
        (row(completion="a", chosen="a", rejected="a\u200b"), "became_equal"),
        (row(completion="a", ranked=("a", "a\u200b")), "became_equal"),
    ],
)
def test_an_edit_that_breaks_a_row_rejects_it(example, reason):
    rejected = UNICODE(example)
    assert isinstance(rejected, Rejected) and rejected.reason == reason and rejected.row is example


def test_scopes():
    pair = row("ask", completion="good", chosen="good", rejected="bad")
    assert texts_in(pair, "document") == ("ask\ngood\nbad",)
    assert texts_in(pair, "answers") == ("good", "bad")
    assert texts_in(pair, "imitated") == ("good",)
    assert texts_in(row("ask"), "imitated") == () == texts_in(row("ask"), "answers")
    upper = changed_in(pair, "imitated", str.upper)
    assert isinstance(upper, Row)
    assert (upper.example.completion, upper.example.chosen, upper.example.rejected) == ("GOOD", "GOOD", "bad")
    both = changed_in(pair, "answers", str.upper)
    assert isinstance(both, Row) and both.example.rejected == "BAD" and both.example.prompt == pair.example.prompt


def test_they_are_blocks():
    assert isinstance(UNICODE, Block) and isinstance(WHITESPACE, Block)
