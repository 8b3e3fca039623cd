"""Quality rules of the Gopher, C4 and FineWeb corpora. Defaults suit chat answers; ``paper()`` gives each paper's own thresholds.

Texts of fewer than ``judged_from_words`` words pass the rules on ratios: in a short answer one odd line is a large share.
"""

import re
from collections.abc import Callable
from typing import Self

from pydantic import Field

from data.blocks.base import Rejected, Row
from data.blocks.repetition import (
    duplicate_lines,
    duplicate_ngram_shares,
    duplicate_paragraphs,
    duplicates,
    tokens_of,
    top_ngram_share,
    words_in,
)
from data.blocks.scopes import changed_in, fenced_parts, texts_in
from data.blocks.settings import SCOPE, BlockSettings, Scope

Fault = tuple[str, str] | None  # the reason and the detail
_JUDGED = "Texts with fewer words than this pass the rules on ratios, in words. 0: all are judged."
_OFF = " 1: off."
_STOP_WORDS = ("the", "be", "to", "of", "and", "that", "have", "with")
# Full stop, question and exclamation marks of the scripts in wide use; ruff would take the full-width ones for typing errors.
_TERMINAL = tuple(
    ".?!\u3002\uff01\uff1f\uff0e\uff61\u203c\u203d\u2047\u2048\u2049\u061f\u06d4\u0964\u0965\u104a\u104b\u1362\u1367\u17d4\u0589"
)


def _share(default: float, of: str, le: float = 1.0) -> float:
    return Field(default=default, ge=0, le=le, description=of)


class GopherSettings(BlockSettings):
    """Rules of Rae et al. 2021, appendix A1."""

    scope: Scope = Field(default="imitated", description=SCOPE)
    judged_from_words: int = Field(default=50, ge=0, description=_JUDGED)
    min_words: int = Field(default=1, ge=0, description="Fewest words of a text, in words. Paper: 50.")
    max_words: int = Field(default=100_000, ge=1, description="Most words of a text, in words.")
    min_mean_word_characters: float = Field(default=2, ge=0, description="Least mean length of a word, in characters. Paper: 3.")
    max_mean_word_characters: float = Field(default=10, ge=1, description="Largest mean length of a word, in characters.")
    max_symbols_per_word: float = Field(default=0.1, ge=0, description="Most hash signs per token, and most ellipses per token.")
    max_bullet_lines: float = _share(0.9, "Largest share of lines that begin with a bullet (• or -)." + _OFF)
    max_ellipsis_lines: float = _share(0.3, "Largest share of lines that end with an ellipsis." + _OFF)
    min_alphabetic: float = _share(0.5, "Least share of words that hold a letter. Paper: 0.8, which refuses sums. 0: off.")
    stop_words: tuple[str, ...] = Field(default=_STOP_WORDS, description="Stop words of the language, in lower case.")
    min_stop_words: int = Field(default=2, ge=0, description="Fewest different stop words that a text holds. 0: off.")
    max_duplicate_lines: float = _share(0.3, "Largest share of lines that repeat an earlier one." + _OFF)
    max_duplicate_line_characters: float = _share(0.2, "Largest share of characters in such lines." + _OFF)
    max_duplicate_paragraphs: float = _share(0.3, "Largest share of paragraphs that repeat an earlier one." + _OFF)
    max_duplicate_paragraph_characters: float = _share(0.2, "Largest share of characters in such paragraphs." + _OFF)
    max_top_ngrams: tuple[float, float, float] = Field(
        default=(0.2, 0.18, 0.16), description="Largest share of characters in the most frequent 2-, 3- and 4-gram of tokens."
    )
    max_duplicate_ngrams: tuple[float, float, float, float, float, float] = Field(
        default=(0.15, 0.14, 0.13, 0.12, 0.11, 0.10),
        description="Largest share of characters in 5-, 6-, 7-, 8-, 9- and 10-grams of tokens that occurred before.",
    )

    @classmethod
    def paper(cls) -> Self:
        """The paper's own values, for web documents."""
        return cls(min_words=50, judged_from_words=0, min_mean_word_characters=3, min_alphabetic=0.8)


class Gopher:
    """Rejects texts that are too short or long, are not prose, or repeat themselves."""

    name = "gopher"

    def __init__(self, settings: GopherSettings) -> None:
        self.settings = settings

    def __call__(self, row: Row) -> Row | Rejected:
        return _first_fault(row, self.settings.scope, self.fault)

    def fault(self, text: str) -> Fault:
        """The first rule that a text breaks, as (reason, detail); None where it breaks none."""
        tokens = tokens_of(text)
        words = words_in(tokens)
        if fault := self._length_fault(len(words)):
            return fault
        if len(words) < max(self.settings.judged_from_words, 1):
            return None
        return self._word_fault(text, tokens, words) or self._line_fault(text) or self._repetition_fault(text, tokens)

    def _length_fault(self, words: int) -> Fault:
        if words < self.settings.min_words:
            return "too_few_words", f"{words} words, the least is {self.settings.min_words}"
        if words > self.settings.max_words:
            return "too_many_words", f"{words} words, the most is {self.settings.max_words}"
        return None

    def _word_fault(self, text: str, tokens: list[str], words: list[str]) -> Fault:
        settings = self.settings
        mean = sum(map(len, words)) / len(words)
        if not settings.min_mean_word_characters <= mean <= settings.max_mean_word_characters:
            return "mean_word_length", f"words are {mean:.1f} characters long on average"
        for reason, count in (("hashes", text.count("#")), ("ellipses", text.count("...") + text.count("…"))):
            if count / len(tokens) > settings.max_symbols_per_word:
                return reason, f"{count} among {len(tokens)} tokens"
        alphabetic = sum(any(map(str.isalpha, word)) for word in words) / len(words)
        if alphabetic < settings.min_alphabetic:
            return "not_alphabetic", f"{alphabetic:.0%} of words hold a letter"
        found = len(set(settings.stop_words).intersection(words))
        if found < settings.min_stop_words:
            return "stop_words", f"{found} of the stop words"
        return None

    def _line_fault(self, text: str) -> Fault:
        lines = text.splitlines()
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines) / len(lines)
        if bullets > self.settings.max_bullet_lines:
            return "bullet_lines", f"{bullets:.0%} of lines begin with a bullet"
        ellipses = sum(line.rstrip().endswith(("...", "…")) for line in lines) / len(lines)
        if ellipses > self.settings.max_ellipsis_lines:
            return "ellipsis_lines", f"{ellipses:.0%} of lines end with an ellipsis"
        return None

    def _repetition_fault(self, text: str, tokens: list[str]) -> Fault:
        settings = self.settings
        paragraphs, paragraph_characters = duplicate_paragraphs(text)
        lines, line_characters = duplicate_lines(text)
        tops = [top_ngram_share(tokens, n, len(text)) for n in (2, 3, 4)]
        repeats = duplicate_ngram_shares(tokens, (5, 6, 7, 8, 9, 10), len(text))
        measured = [
            ("duplicate_paragraphs", paragraphs, settings.max_duplicate_paragraphs),
            ("duplicate_paragraph_characters", paragraph_characters, settings.max_duplicate_paragraph_characters),
            ("duplicate_lines", lines, settings.max_duplicate_lines),
            ("duplicate_line_characters", line_characters, settings.max_duplicate_line_characters),
            *((f"top_{n}_gram", top, most) for n, top, most in zip((2, 3, 4), tops, settings.max_top_ngrams, strict=True)),
            *((f"duplicate_{n}_grams", repeats[n], most) for n, most in zip(repeats, settings.max_duplicate_ngrams, strict=True)),
        ]
        return next(((reason, f"{share:.2f}, the most is {most}") for reason, share, most in measured if share > most), None)


_SENTENCE_END = re.compile(r"(?<![.?!])[.?!]++[\"'\u201d\u2019)\]]*+(?=\s|\Z)")
_CITATION = re.compile(r"\[\d*+\]|\[edit\]|\[citation needed\]")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_LINE_ENDINGS = (".", "?", "!", '"', "'")


class C4Settings(BlockSettings):
    """Rules of Raffel et al. 2020, section 2.2. The line rules drop lines and keep the rest of the text; the others reject."""

    scope: Scope = Field(default="imitated", description=SCOPE)
    terminal_punctuation: bool = Field(
        default=False, description="Drop lines that do not end in . ! ? or a quotation mark. Paper: on; off keeps lists, formulas and code."
    )
    min_line_words: int = Field(default=0, ge=0, description="Drop lines with fewer words, in words. Paper: 3.")
    max_word_characters: int = Field(default=1000, ge=0, description="Drop lines with a longer word, in characters. 0: off.")
    javascript: bool = Field(default=False, description="Drop lines that mention JavaScript. Paper: on.")
    policy: bool = Field(default=True, description="Drop lines on terms of use, privacy policies and cookies.")
    citations: bool = Field(
        default=False, description="Remove citation marks of Wikipedia: [1], [edit], [citation needed]. Their code: on."
    )
    spare_code: bool = Field(default=True, description="Let no line rule touch fenced code (```). Paper: off.")
    lorem_ipsum: bool = Field(default=True, description="Reject texts that hold lorem ipsum.")
    curly_bracket: bool = Field(default=False, description="Reject texts that hold a curly bracket. Paper: on; off keeps code.")
    min_sentences: int = Field(default=0, ge=0, description="Fewest sentences of what is left, in sentences. Paper: 5.")
    bad_words: tuple[str, ...] = Field(
        default=(), description="Reject texts that hold one of these words. The profanity block has a packaged list and knows shares."
    )

    @classmethod
    def paper(cls) -> Self:
        """The paper's own values, for web documents."""
        return cls(
            terminal_punctuation=True,
            min_line_words=3,
            javascript=True,
            citations=True,
            spare_code=False,
            curly_bracket=True,
            min_sentences=5,
        )


class C4:
    """Drops lines that are no sentences and rejects texts that are no prose."""

    name = "c4"

    def __init__(self, settings: C4Settings) -> None:
        self.settings = settings
        words = "|".join(map(re.escape, sorted(settings.bad_words)))
        self._bad_words = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE) if words else None

    def __call__(self, row: Row) -> Row | Rejected:
        rejected = _first_fault(row, self.settings.scope, self.fault)
        return rejected if isinstance(rejected, Rejected) else changed_in(row, self.settings.scope, self.kept)

    def fault(self, text: str) -> Fault:
        """The first rejecting rule that a text breaks, looked for in the lines that stay."""
        settings = self.settings
        kept = self.kept(text)
        if settings.lorem_ipsum and "lorem ipsum" in kept.lower():
            return "lorem_ipsum", "it holds lorem ipsum"
        if settings.curly_bracket and "{" in kept:
            return "curly_bracket", "it holds a curly bracket"
        if self._bad_words and (found := self._bad_words.search(kept)):
            return "bad_word", f"it holds {found[0]!r}"
        sentences = sum(map(sentences_in, kept.splitlines())) if settings.min_sentences else 0
        if sentences < settings.min_sentences:
            return "too_few_sentences", f"{sentences} sentences are left, the least is {settings.min_sentences}"
        return None

    def kept(self, text: str) -> str:
        """What the line rules leave of a text; all of it, to the byte, where they drop nothing."""
        if not self.settings.spare_code:
            return self._kept_lines(text)
        return "".join(part if is_code else self._kept_lines(part) for is_code, part in fenced_parts(text))

    def _kept_lines(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        if self.settings.citations:
            lines = [_CITATION.sub("", line) for line in lines]
        kept = [line for line in lines if self._keeps(line.strip())]
        return text if len(kept) == len(lines) and not self.settings.citations else "".join(kept)

    def _keeps(self, line: str) -> bool:
        settings = self.settings
        words = line.split()
        lower = line.lower()
        return not (
            (settings.max_word_characters and any(len(word) > settings.max_word_characters for word in words))
            or (settings.terminal_punctuation and (not line.endswith(_LINE_ENDINGS) or line.endswith("...")))
            or len(words) < settings.min_line_words
            or (settings.javascript and "javascript" in lower)
            or (settings.policy and any(phrase in lower for phrase in _POLICY))
        )


def sentences_in(line: str) -> int:
    """Sentences of a line: its ends of sentences, and one more where something follows the last. By hand: "Hi! 3.5 is it... ok" is 3."""
    ends = [match.end() for match in _SENTENCE_END.finditer(line)]
    return len(ends) + bool(line[ends[-1] if ends else 0 :].strip())


class FineWebSettings(BlockSettings):
    """Rules of Penedo et al. 2024, section 3.5, and of the code that goes with it."""

    scope: Scope = Field(default="imitated", description=SCOPE)
    judged_from_words: int = Field(default=50, ge=0, description=_JUDGED)
    min_punctuated_lines: float = _share(0, "Least share of lines that end with terminal punctuation. Paper: 0.12. 0: off.")
    max_short_lines: float = _share(1, "Largest share of short lines. Paper: 0.67, which refuses lists." + _OFF)
    short_line_characters: int = Field(default=30, ge=0, description="A line this long or shorter is short, in characters.")
    max_duplicate_line_characters: float = _share(
        0.1, "Largest share of characters in lines that repeat an earlier one. Paper: 0.01." + _OFF
    )
    max_lines_per_word: float = Field(default=0.3, ge=0, description="Most line breaks per token: more is a list.")

    @classmethod
    def paper(cls) -> Self:
        """The paper's own values, for web documents."""
        return cls(judged_from_words=0, min_punctuated_lines=0.12, max_short_lines=0.67, max_duplicate_line_characters=0.01)


class FineWeb:
    """Rejects texts that are lists, menus or repeated lines rather than prose."""

    name = "fineweb"

    def __init__(self, settings: FineWebSettings) -> None:
        self.settings = settings

    def __call__(self, row: Row) -> Row | Rejected:
        return _first_fault(row, self.settings.scope, self.fault)

    def fault(self, text: str) -> Fault:
        """The first rule that a text breaks, as (reason, detail); None where it breaks none."""
        settings = self.settings
        tokens = tokens_of(text)
        lines = [line for line in text.split("\n") if line.strip()]
        if not lines:
            return "empty", "it holds no line that is not blank"
        if settings.judged_from_words and len(words_in(tokens)) < settings.judged_from_words:
            return None
        punctuated = sum(line.endswith(_TERMINAL) for line in lines) / len(lines)
        if punctuated < settings.min_punctuated_lines:
            return "unpunctuated_lines", f"{punctuated:.0%} of lines end with terminal punctuation"
        short = sum(len(line) <= settings.short_line_characters for line in lines) / len(lines)
        if short > settings.max_short_lines:
            return "short_lines", f"{short:.0%} of lines are short"
        repeated = duplicates(lines)[1] / len(text.replace("\n", ""))
        if repeated > settings.max_duplicate_line_characters:
            return "duplicate_line_characters", f"{repeated:.2f}, the most is {settings.max_duplicate_line_characters}"
        breaks = text.count("\n") / max(len(tokens), 1)
        if breaks > settings.max_lines_per_word:
            return "lines_per_word", f"{breaks:.2f} line breaks per token, the most is {settings.max_lines_per_word}"
        return None


def _first_fault(row: Row, scope: Scope, fault: Callable[[str], Fault]) -> Row | Rejected:
    for text in texts_in(row, scope):
        if found := fault(text):
            return Rejected(row, *found)
    return row
