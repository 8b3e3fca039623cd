"""Markdown from hostile text: what others wrote stays plain text, on one line, in its cell."""

import html
from collections.abc import Sequence


def escaped_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; every cell is shown as it is."""
    lines = [columns, ["---"] * len(columns), *([inline(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inline(text: str) -> str:
    """A text that stays one piece of plain text in Markdown: on one line, its marks and tags shown as they are."""
    escaped = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{character}" if character in "\\`*_[]|#!" else character for character in escaped)
