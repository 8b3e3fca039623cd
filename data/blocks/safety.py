"""Blocks for what an answer should not teach: profanity, refusals and web boilerplate. (Personal data: data.blocks.pii.)"""

import importlib.util
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from data.blocks.base import Rejected, Row
from data.blocks.scopes import changed_in, outside_fences, shown, texts_in
from data.blocks.settings import SCOPE, BlockSettings, Scope

# Languages of the packaged lists that put spaces between words.
ListLanguage = Literal[
    "cs", "da", "de", "el", "en", "es", "fi", "fr", "hu", "id", "it", "nl", "no", "pl", "pt", "ro", "ru", "sv", "tr", "uk"
]
# Words of the English list that ordinary answers use.
_ORDINARY = (
    *("abortion", "anus", "ass", "balls", "barenaked", "bastard", "breasts", "butt", "coq", "damn", "domination", "fecal", "genitals"),
    *("god", "hell", "hooker", "humping", "kinky", "knob", "lust", "nazi", "nude", "nudity", "penis", "queer", "rape", "raping", "rectum"),
    *("screw", "sex", "sexual", "sexuality", "sexually", "sexy", "strip club", "suck", "sucks", "swastika", "tied up", "topless"),
    *("vagina", "violet wand", "willy", "xx"),
)
_WORD = re.compile(r"[^\W_]++(?:'[^\W_]++)*+")


class ProfanitySettings(BlockSettings):
    """How much profanity is too much, by the packaged word lists of badwords-py (LDNOOBW among them)."""

    scope: Scope = Field(default="imitated", description=SCOPE)
    languages: list[ListLanguage] = Field(default=["en"], min_length=1, description="Languages of the word lists.")
    ignore: tuple[str, ...] = Field(
        default=_ORDINARY, description="Entries of the lists that do not count; by default those that ordinary answers use."
    )
    also: tuple[str, ...] = Field(default=(), description="Words and phrases that count besides those of the lists.")
    min_words: int = Field(default=1, ge=1, description="Fewest profane words that make a text profane, in words.")
    max_share: float = Field(
        default=0.02, ge=0, le=1, description="Share of profane words that is still allowed (Moby-Dick in a long answer). 0: none."
    )


class Profanity:
    """Rejects texts with profane words: at least ``min_words`` of them, and more than ``max_share`` of all words."""

    name = "profanity"

    def __init__(self, settings: ProfanitySettings) -> None:
        self.settings = settings
        ignored = {_entry(text) for text in settings.ignore}
        self._entries: dict[str, list[tuple[str, ...]]] = defaultdict(list)
        listed = (line for language in settings.languages for line in _word_list(language))
        for words in sorted({_entry(text) for text in (*listed, *settings.also)} - ignored, key=len, reverse=True):
            if words:
                self._entries[words[0]].append(words)

    def __call__(self, row: Row) -> Row | Rejected:
        for text in texts_in(row, self.settings.scope):
            words = _entry(text)
            found = self.found(words)
            profane = sum(map(len, found))
            if profane >= self.settings.min_words and profane > self.settings.max_share * len(words):
                kinds = ", ".join(dict.fromkeys(" ".join(entry) for entry in found[:3]))
                return Rejected(row, "profanity", f"{profane} of {len(words)} words, such as {kinds}")
        return row

    def profane_in(self, text: str) -> int:
        """How many words of a text are profane."""
        return sum(map(len, self.found(_entry(text))))

    def found(self, words: Sequence[str]) -> list[tuple[str, ...]]:
        """The entries that occur as whole words, the longest at each place, none overlapping another."""
        found, position = [], 0
        while position < len(words):
            entries = self._entries.get(words[position], ())
            entry = next((entry for entry in entries if tuple(words[position : position + len(entry)]) == entry), None)
            if entry:
                found.append(entry)
            position += len(entry) if entry else 1
        return found


def _entry(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.replace("\u2019", "'").casefold()))


@cache
def _word_list(language: str) -> tuple[str, ...]:
    package = importlib.util.find_spec("badwords")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("the profanity block needs the word lists of badwords-py: pip install badwords-py")
    path = Path(package.origin).parent / "resource" / "words" / f"{language}.txt"
    return tuple(path.read_text(encoding="utf-8").split("\n"))


_VERB = (
    "(?:help|assist|provide|answer|fulfill|fulfil|comply|do that|discuss|engage|create|generate|give|support|write|continue|offer|respond"
    "|share|recommend)"
)
_CANNOT = (
    "(?:can't|cannot|can not|won't|will not|couldn't|am unable to|'m unable to|am not able to|'m not able to|must decline|have to decline)"
)
_REFUSAL = re.compile(
    rf"\b(?:i'm|i am) (?:(?:so|very|really|truly) )?(?:sorry|afraid),?(?: but)? (?:that )?"
    rf"(?:i ?(?:{_CANNOT}|do not|don't|am not|'m not)|as an ai)\b"
    rf"|\bi apologi[sz]e,?(?: but)? (?:i|as an ai)\b|\bsorry,? (?:but )?i {_CANNOT}\b"
    rf"|\bi(?: am)? ?{_CANNOT} (?:\w+ ){{0,2}}{_VERB}\b"
    r"|\bi(?: am|'m) not (?:comfortable|programmed|allowed|designed) (?:to|with|for|answering|discussing|providing)\b"
    r"|\b(?:it (?:is|would be) (?:not appropriate|inappropriate|unethical|against my)|against my (?:programming|guidelines|policy))\b"
)
_SELF_REFERENCE = re.compile(
    r"\b(?:as|i am|i'm|being) an? (?:\w+ )?(?:ai|a\.i\.|artificial intelligence)"
    r"(?: (?:language )?(?:model|assistant|chatbot|bot|system))?\b"
    r"|\b(?:as|i am|i'm|just) (?:a |an )?(?:large )?language model\b|\bmy (?:knowledge|training)(?: data)? cut-?off\b"
    r"|\b(?:trained|developed|created) by (?:openai|anthropic|google|meta)\b"
    r"|\bi (?:do not|don't) have (?:personal )?(?:feelings|emotions|opinions)\b"
)


class RefusalsSettings(BlockSettings):
    """Which answers count as refusals."""

    scope: Literal["answers", "imitated"] = Field(default="imitated", description=SCOPE)
    refusals: bool = Field(default=True, description="Reject answers that begin by declining: I'm sorry, but I cannot …")
    self_reference: bool = Field(default=True, description="Reject answers that say they come from a machine: As an AI language model …")
    opening_characters: int = Field(
        default=200, ge=1, description="How far into the answer a refusal is looked for, in characters. A self-reference is, anywhere."
    )


class Refusals:
    """Rejects answers that decline to answer or speak of themselves as a machine. English only."""

    name = "refusals"

    def __init__(self, settings: RefusalsSettings) -> None:
        self.settings = settings

    def __call__(self, row: Row) -> Row | Rejected:
        for text in texts_in(row, self.settings.scope):
            plain = _plain(text)
            if self.settings.refusals and (words := refusal_in(text, self.settings.opening_characters)):
                return Rejected(row, "refusal", shown(words))
            if self.settings.self_reference and (found := _SELF_REFERENCE.search(plain)):
                return Rejected(row, "self_reference", shown(found[0]))
        return row


def refusal_in(text: str, opening_characters: int | None = None) -> str:
    """The words with which a text declines to answer, looked for in its opening or anywhere; "" where it does not. English only."""
    found = _REFUSAL.search(_plain(text)[:opening_characters])
    return found[0] if found else ""


def _plain(text: str) -> str:
    return " ".join(text.replace("\u2019", "'").lower().split())


_LINE_CHARACTERS = 200
_BOILERPLATE = re.compile(
    r"(?:we|this (?:web)?site|our (?:web)?site) uses? cookies\b.*"
    r"|by (?:using|continuing to use|browsing) (?:this|our) (?:web)?site,? .*"
    r"|(?:accept|reject|manage)(?: all)? cookies.*"
    r"|share (?:this|on|via|with)"
    r"(?: (?:this|post|article|page|story|on|via|with|facebook|twitter|x|linkedin|whatsapp|e-?mail|your friends))*"
    r"[:.!]?"
    r"|(?:copyright |\xa9|\(c\)).{0,120}(?:\d{4}|all rights reserved).*|.{0,120}all rights reserved\.?"
    r"|(?:subscribe|sign up)(?: now| today)?(?: (?:to|for))? (?:our|the) (?:\w+ ){0,2}(?:newsletter|mailing list|channel).*"
    r"|(?:click here|tap here)(?: to| for).*|(?:read more|continue reading|learn more|see more|view more|load more)[.\u2026:\xbb>\u2192]*"
    r"|(?:skip|jump) to (?:main )?(?:content|navigation)|(?:log|sign) ?(?:in|up|out)(?: (?:/|or|\|) (?:log|sign|register) ?(?:in|up)?)*"
    r"|(?:previous|next|older|newer) (?:post|article|page|entry|story)s? ?[\xbb\xab<>\u2192\u2190:]*|(?:proudly )?powered by \w+(?: \w+)?"
    r"|(?:terms of (?:use|service)|privacy policy|cookie policy|contact us|about us|site ?map|advertisement|related (?:posts|articles)"
    r"|leave a (?:comment|reply)|\d+ comments?|follow us(?: on .*)?|back to top|(?:table of )?contents \[hide\])[:.]?"
)
_SEPARATORS = re.compile(r"\s*+[|\u00bb\u203a\u2022\u00b7]\s*+")


class BoilerplateSettings(BlockSettings):
    """What is done about the lines web pages put around their text."""

    scope: Scope = Field(default="imitated", description=SCOPE)
    action: Literal["edit", "reject"] = Field(default="edit", description="edit: remove such lines; reject: refuse the row.")
    max_share: float = Field(
        default=0.0, ge=0, le=1, description="With reject: share of lines (blank ones not counted) that may be boilerplate."
    )


class Boilerplate:
    """Removes lines such as cookie notices, "Share this", menus and copyright, or rejects texts that hold them. English only."""

    name = "boilerplate"

    def __init__(self, settings: BoilerplateSettings) -> None:
        self.settings = settings

    def __call__(self, row: Row) -> Row | Rejected:
        if self.settings.action == "edit":
            return changed_in(row, self.settings.scope, lambda text: outside_fences(text, _without_boilerplate))
        for text in texts_in(row, self.settings.scope):
            lines = [line for line in text.splitlines() if line.strip()]
            found = list(filter(is_boilerplate, lines))
            if len(found) > self.settings.max_share * len(lines):
                return Rejected(row, "boilerplate", f"{len(found)} of {len(lines)} lines, such as {shown(found[0])}")
        return row


def is_boilerplate(line: str) -> bool:
    """Whether a line (of at most 200 characters) is nothing but boilerplate: a known phrase, or a menu of three or more short items.

    By hand: "Home | About us | Contact" is, "| name | age |" (a table) and "Share this idea with your team first." are not.
    """
    line = line.strip()
    if not 0 < len(line) <= _LINE_CHARACTERS:
        return False
    if _BOILERPLATE.fullmatch(line.lower()):
        return True
    items = _SEPARATORS.split(line)
    return len(items) >= 3 and all(items) and all(len(item.split()) <= 3 for item in items) and _MENU.search(line.lower()) is not None


_MENU = re.compile(r"\b(?:home|about|contact|login|log in|privacy|terms|blog|faq|help|search|sitemap|menu)\b")


def _without_boilerplate(text: str) -> str:
    lines = text.splitlines(keepends=True)
    kept = [line for line in lines if not is_boilerplate(line)]
    return text if len(kept) == len(lines) else "".join(kept)
