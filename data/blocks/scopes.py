"""The texts of a row that a block judges or changes, and how a change is put back without breaking the row."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from data.blocks.base import Rejected, Row, edited
from data.blocks.settings import Scope
from data.forms import Example

_LINE = re.compile(r"[^\n\r\x85\u2028\u2029]*(?:\r\n|[\n\r\x85\u2028\u2029]|\Z)")
_FENCE = re.compile(r"`{3,}+|~{3,}+")


def texts_in(row: Row, scope: Scope) -> tuple[str, ...]:
    """The texts a block judges, none where the row has no such text."""
    if scope == "document":
        return (row.text,)
    if scope == "answers":
        return row.example.answers()
    return () if row.example.completion is None else (row.example.completion,)


def changed_in(row: Row, scope: Scope, change: Callable[[str], str]) -> Row | Rejected:
    """The row with ``change`` applied to the texts in scope (every turn and answer for document), if a usable row is left.

    Rejects as ``emptied`` what has a blank text afterwards that was not blank before, and as ``became_equal`` what no longer tells its
    answers apart.
    """
    new = edited(row, change) if scope == "document" else _answers_changed(row, scope, change)
    if new is row:
        return row
    for before, after in zip(_texts(row.example), _texts(new.example), strict=True):
        if before.strip() and not after.strip():
            return Rejected(row, "emptied", f"nothing is left of {shown(before)}")
    if _told_apart(row.example) and not _told_apart(new.example):
        return Rejected(row, "became_equal", "answers that differed are the same text now")
    return new


def _answers_changed(row: Row, scope: Scope, change: Callable[[str], str]) -> Row:
    imitated = row.example.completion

    def changed(text: str | None) -> str | None:
        return text if text is None or (scope == "imitated" and text != imitated) else change(text)

    example = row.example
    new = replace(
        example,
        completion=changed(example.completion),
        chosen=changed(example.chosen),
        rejected=changed(example.rejected),
        labelled=changed(example.labelled),
        ranked=tuple(changed(text) or "" for text in example.ranked),
    )
    return row if new == example else replace(row, example=new)


def _texts(example: Example) -> list[str]:
    fields = (example.completion, example.chosen, example.rejected, example.labelled, *example.ranked)
    return [*(message.content for message in example.prompt), *(text or "" for text in fields)]


def _told_apart(example: Example) -> bool:
    differ = example.chosen is None or example.chosen != example.rejected
    return differ and len(set(example.ranked)) == len(example.ranked)


def shown(text: str, characters: int = 60) -> str:
    """The beginning of a text on one line, quoted, as a report shows it."""
    return repr(text if len(text) <= characters else f"{text[:characters]}…")


def fenced_parts(text: str) -> Iterator[tuple[bool, str]]:
    """The text cut into (is code, part): code is what stands between lines that begin with ``` or ~~~, these lines included.

    A fence ends at a line of at least as many of the same marks and nothing else (CommonMark 4.5, here with any indentation); one that
    never ends goes on to the end. Lines end at \\n, \\r, \\r\\n, U+0085, U+2028 or U+2029. The parts joined are the text.
    """
    if "```" not in text and "~~~" not in text:
        yield False, text
        return
    start, fence = 0, ""
    for line in _LINE.finditer(text):
        marks = _FENCE.match(line[0].lstrip())
        if not fence and marks and not ("`" in marks[0] and "`" in line[0].lstrip()[marks.end() :]):
            yield False, text[start : line.start()]
            start, fence = line.start(), marks[0]
        elif fence and line[0].strip() and set(line[0].strip()) == {fence[0]} and len(line[0].strip()) >= len(fence):
            yield True, text[start : line.end()]
            start, fence = line.end(), ""
    yield bool(fence), text[start:]


def outside_fences(text: str, change: Callable[[str], str]) -> str:
    """The text with ``change`` applied to what is not fenced code."""
    return "".join(part if is_code else change(part) for is_code, part in fenced_parts(text))
