"""Blocks that repair how a text is written and leave what it says: Unicode and white space."""

import re
import unicodedata
from typing import Literal

import ftfy
from ftfy.badness import is_bad
from pydantic import Field

from data.blocks.base import Rejected, Row
from data.blocks.scopes import changed_in, fenced_parts
from data.blocks.settings import BlockSettings

_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
_C1 = re.compile("[\x80-\x9f]")
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")
# Zero-width space, word joiner and invisible operators, soft hyphen, Hangul and Mongolian fillers, byte order mark, and tag characters,
# which can hide a whole instruction from the reader.
_ZERO_WIDTH = re.compile("[\u00ad\u034f\u115f\u1160\u180e\u200b\u2060-\u2064\u206a-\u206f\u3164\ufeff\uffa0\U000e0000-\U000e007f]")
# Joiners shape Arabic, Indic scripts and emoji; after anything else they only tell equal words apart. Variation selectors likewise.
_JOINERS = re.compile("(?<![\u0590-\uffff\U00010000-\U000dffff])[\u200c\u200d]++")
_SELECTORS = re.compile("(?<![\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])[\U000e0100-\U000e01ef]++")
_ROUNDS = 8
_FTFY = ftfy.TextFixerConfig(
    unescape_html=False,
    remove_terminal_escapes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    uncurl_quotes=False,
    fix_line_breaks=False,
    fix_surrogates=False,
    remove_control_chars=False,
    normalization=None,
    explain=False,
)


class UnicodeSettings(BlockSettings):
    """How characters are repaired. Lone surrogates always become U+FFFD: no file can hold them."""

    form: Literal["none", "NFC", "NFKC"] = Field(
        default="NFC",
        description="Unicode normal form. NFKC also folds look-alikes: full width, ligatures, superscripts (x² becomes x2). none: leave.",
    )
    repair_mojibake: bool = Field(default=True, description="Undo text that was decoded with the wrong encoding (Ã© for é), with ftfy.")
    remove_control: bool = Field(default=True, description="Remove control characters other than tab and line ends.")
    remove_zero_width: bool = Field(
        default=True,
        description="Remove characters without width: zero-width spaces, soft hyphens, byte order marks, tag characters, and joiners and "
        "variation selectors where no script needs them.",
    )
    remove_bidi: bool = Field(
        default=True, description="Remove bidirectional overrides, embeddings and isolates, which show a text in another order than it has."
    )


class Unicode:
    """Repairs the characters of every turn and answer."""

    name = "unicode"

    def __init__(self, settings: UnicodeSettings) -> None:
        self.settings = settings
        switches = {
            _CONTROL: settings.remove_control,
            _BIDI: settings.remove_bidi,
            _ZERO_WIDTH: settings.remove_zero_width,
            _JOINERS: settings.remove_zero_width,
            _SELECTORS: settings.remove_zero_width,
        }
        self._removed = [pattern for pattern, on in switches.items() if on]

    def __call__(self, row: Row) -> Row | Rejected:
        return changed_in(row, "document", self.repair)

    def repair(self, text: str) -> str:
        """The text repaired until nothing changes, at most 8 times: what one step leaves may be for another to do."""
        if text.isascii() and not _CONTROL.search(text):
            return text
        for _ in range(_ROUNDS):
            before, text = text, self._repair_once(text)
            if text == before:
                break
        return text

    def _repair_once(self, text: str) -> str:
        text = without_surrogates(text)
        if self.settings.repair_mojibake and (is_bad(text) or _C1.search(text)):
            text = "".join(ftfy.fix_text_segment(line, _FTFY) for line in text.splitlines(keepends=True))
        for pattern in self._removed:
            text = pattern.sub("", text)
        return text if self.settings.form == "none" else unicodedata.normalize(self.settings.form, text)


def without_surrogates(text: str) -> str:
    """The text as UTF-8 can hold it: surrogate pairs joined to the character they stand for, lone ones replaced by U+FFFD."""
    if text.isascii():
        return text
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


_LINE_END = re.compile("\r\n|[\r\x85\u2028\u2029]")
_ODD_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000\x0b\x0c]")
# Each begins only where a run begins, so that a run is read once.
_TRAILING = re.compile(r"(?<![^\S\n])[^\S\n]++(?=\n|\Z)")
_LEADING_BLANK = re.compile(r"\A(?:[^\S\n]*+\n)++")


class WhitespaceSettings(BlockSettings):
    """How white space is made even. Every line ends with a line feed afterwards; fenced code (``` or ~~~) is never touched."""

    odd_spaces: bool = Field(default=True, description="Make no-break, thin, ideographic and other odd spaces plain spaces.")
    tab_spaces: int = Field(default=4, ge=0, le=16, description="Spaces that replace a tab. 0: leave tabs as they are.")
    trailing_spaces: bool = Field(
        default=True, description="Remove white space at the end of lines (also Markdown's line break of two spaces)."
    )
    max_blank_lines: int = Field(default=1, ge=0, le=100, description="Most blank lines in a row; further ones are removed, in lines.")
    ends: bool = Field(default=True, description="Remove blank lines at the start and white space at the end of each text.")


class Whitespace:
    """Makes the white space of every turn and answer even, outside fenced code."""

    name = "whitespace"

    def __init__(self, settings: WhitespaceSettings) -> None:
        self.settings = settings
        self._blank_run = re.compile(rf"(?<!\n)(\n(?:[^\S\n]*+\n){{{settings.max_blank_lines}}})(?:[^\S\n]*+\n)++")

    def __call__(self, row: Row) -> Row | Rejected:
        return changed_in(row, "document", self.even)

    def even(self, text: str) -> str:
        """The text with even white space; what is even already stays as it is."""
        parts = [(is_code, part if is_code else self._prose(part)) for is_code, part in fenced_parts(text)]
        if not self.settings.ends:
            return "".join(part for _, part in parts)
        if not parts[0][0]:
            parts[0] = (False, _LEADING_BLANK.sub("", parts[0][1]))
        while parts and not parts[-1][0] and not parts[-1][1].strip():
            parts.pop()
        last_is_code = bool(parts) and parts[-1][0]
        even = "".join(part for _, part in parts)
        return even.rstrip("\n") if last_is_code else even.rstrip()

    def _prose(self, text: str) -> str:
        settings = self.settings
        text = _LINE_END.sub("\n", text)
        if settings.odd_spaces:
            text = _ODD_SPACE.sub(" ", text)
        if settings.tab_spaces:
            text = text.replace("\t", " " * settings.tab_spaces)
        if settings.trailing_spaces:
            text = _TRAILING.sub("", text)
        return self._blank_run.sub(r"\1", text)
