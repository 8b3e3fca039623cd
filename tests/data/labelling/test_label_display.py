"""What a reader would not see is named; everything else stays as it is."""

import pytest

from data.labelling.display import mark, pieces


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\u202eb", [("a", ""), ("", "RLO"), ("b", "")]),
        ("\u200b\ufeff", [("", "ZWSP"), ("", "BOM")]),
        ("a\r\nb\rc", [("a\nb\nc", "")]),
        ("\x00\x1b[31m\x07", [("", "NUL"), ("", "ESC"), ("[31m", ""), ("", "U+0007")]),
        ("\ud800", [("", "U+D800")]),
        ("\U000e0041", [("", "U+E0041")]),
        ("", []),
    ],
)
def test_hidden_characters_are_named(text, expected):
    assert list(pieces(text)) == expected


@pytest.mark.parametrize(
    "text", ["\U0001f469\u200d\U0001f467", "\u05e2\u05d1\u05e8", "\u0645\u06cc\u200c\u062e", "e\u0301", "\t|\n", "</script>"]
)
def test_what_scripts_and_emoji_need_stays(text):
    assert list(pieces(text)) == [(text, "")]


def test_nothing_but_the_marks_is_added_or_lost():
    text = "".join(chr(code) for code in [*range(0x300), *range(0x2000, 0x2100), 0xFEFF, 0x1F600] if code != 0x0D)
    assert "".join(plain for plain, _ in pieces(text)) == "".join(c for c in text if list(pieces(c)) == [(c, "")])
    assert mark("\u2066") == "LRI"
