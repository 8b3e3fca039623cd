"""Text of unknown origin as it may be shown: what a reader would not see, or would see elsewhere, is named instead."""

import unicodedata
from collections.abc import Iterator

# Joiners make emoji and several scripts: they stay. The others are unseen, or reorder the text around them.
_JOINERS = {0x200C, 0x200D}
_UNSEEN = {0x00AD, 0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180E, 0x3164, 0xFEFF, 0xFFA0}
_SHORT = {
    0x0000: "NUL",
    0x001B: "ESC",
    0x00AD: "SHY",
    0x200B: "ZWSP",
    0x200E: "LRM",
    0x200F: "RLM",
    0x202A: "LRE",
    0x202B: "RLE",
    0x202C: "PDF",
    0x202D: "LRO",
    0x202E: "RLO",
    0x2060: "WJ",
    0x2066: "LRI",
    0x2067: "RLI",
    0x2068: "FSI",
    0x2069: "PDI",
    0xFEFF: "BOM",
}


def pieces(text: str) -> Iterator[tuple[str, str]]:
    """The text in pieces: ``(shown, "")`` for what is shown as it is, ``("", mark)`` for a character named by ``mark``.

    By hand: ``"a\\u202eb"`` gives ``("a", "")``, ``("", "RLO")``, ``("b", "")``. Line ends of all kinds become ``\\n``.
    """
    start = 0
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    for index, character in enumerate(text):
        if _is_hidden(character):
            if index > start:
                yield text[start:index], ""
            yield "", mark(character)
            start = index + 1
    if start < len(text):
        yield text[start:], ""


def mark(character: str) -> str:
    """What a hidden character is called: its usual abbreviation, else its code point."""
    return _SHORT.get(ord(character), f"U+{ord(character):04X}")


def _is_hidden(character: str) -> bool:
    code = ord(character)
    if character in "\n\t" or code in _JOINERS:
        return False
    if code in _UNSEEN or 0xFFF9 <= code <= 0xFFFB:
        return True
    return unicodedata.category(character) in ("Cc", "Cf", "Cs") or code in (0x2028, 0x2029) or 0xE0100 <= code <= 0xE01EF
