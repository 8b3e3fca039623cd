"""What an answer looks like, whatever it says: the form that a verifier reads, lists, code, emoji, characters beyond ASCII, language."""

import re
import unicodedata

from data.blocks.language import UNKNOWN, identify, prose_of
from data.verifiers import final_number, stated_form

FORMS = ("answer_tag", "boxed", "hash", "answer_line", "number", "none")
_MOST_CHARACTERS = 20_000
_BULLET = re.compile(r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE)
_FENCE = re.compile(r"^[ \t]*(?:```|~~~)", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}[ \t]+\S", re.MULTILINE)
_LETTERS_OF_A_LANGUAGE = 40  # the language block's own default: shorter texts have none


def answer_form(text: str) -> str:
    """How a completion states its answer: the first of ``FORMS`` that is there, in the order in which verifiers look."""
    text = text[-_MOST_CHARACTERS:]
    return stated_form(text) or ("number" if final_number(text) is not None else "none")


def traits(text: str) -> dict[str, float]:
    """0 or 1 for what is there, and shares of characters; all 0 for an empty text.

    By hand: "- a\\n- b" has bullets; "é" is wholly beyond ASCII.
    """
    text = text[:_MOST_CHARACTERS]
    size = max(len(text), 1)
    return {
        "code": float(_FENCE.search(text) is not None),
        "bullets": float(_BULLET.search(text) is not None),
        "headings": float(_HEADING.search(text) is not None),
        "emoji": float(any(_is_emoji(character) for character in text)),
        "non_ascii": sum(character > "\x7f" for character in text) / size,
        "capitals": sum(map(str.isupper, text)) / size,
        "digits": sum(map(str.isdigit, text)) / size,
        "punctuation": sum(unicodedata.category(character)[0] == "P" for character in text) / size,
    }


def language_of(text: str) -> str:
    """The language of a text as an ISO 639 code, "und" where it has fewer than 40 letters: those have none that shows."""
    return identify(text)[0] if sum(map(str.isalpha, prose_of(text))) >= _LETTERS_OF_A_LANGUAGE else UNKNOWN


def _is_emoji(character: str) -> bool:
    """Pictographs: symbols of the emoji planes, and the older ones from U+2600 to U+27BF."""
    code = ord(character)
    return 0x1F300 <= code <= 0x1FAFF or (0x2600 <= code <= 0x27BF and unicodedata.category(character) == "So")
