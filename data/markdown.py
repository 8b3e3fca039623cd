"""Text of unknown origin inside Markdown."""

import html


def inline(text: str) -> str:
    """A text that stays one piece of plain text in Markdown: on one line, its marks and tags shown as they are."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{character}" if character in "\\`*_[]|#!" else character for character in escaped)
