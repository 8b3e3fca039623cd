"""What an answer looks like, by hand."""

import pytest

from data.answer_form import answer_form, language_of, traits
from data.markdown import inline


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("so <answer>7</answer>", "answer_tag"),
        (r"so \boxed{7}", "boxed"),
        ("so\n#### 7", "hash"),
        ("Answer: 7", "answer_line"),
        ("it is 7", "number"),
        ("no idea", "none"),
        ("", "none"),
    ],
)
def test_forms(text, form):
    assert answer_form(text) == form


@pytest.mark.parametrize(
    ("trait", "text"),
    [("code", "x\n```py\n1\n```"), ("bullets", "a\n- b"), ("bullets", "1. a\n2. b"), ("headings", "# a"), ("emoji", "hi \U0001f600")],
)
def test_traits_that_are_there_or_not(trait, text):
    assert traits(text)[trait] == 1 and traits("plain words - no more, 3 * 4 #1")[trait] == 0


def test_shares_of_characters():
    found = traits("Ab1,é")
    assert {name: found[name] for name in ("capitals", "digits", "punctuation", "non_ascii")} == dict.fromkeys(
        ("capitals", "digits", "punctuation", "non_ascii"), 0.2
    )
    assert set(traits("").values()) == {0}


def test_languages():
    assert language_of("This is a sentence that is clearly long enough to have a language.") == "en"
    assert language_of("Dies ist ein Satz, der sicher lang genug ist, um eine Sprache zu haben.") == "de"
    assert language_of("7") == "und"


def test_markdown_shows_marks_as_they_are():
    assert inline("a | *b*\n<script>") == r"a \| \*b\* &lt;script&gt;"
