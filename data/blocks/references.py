"""Texts a block learns from: a plain text file, or rows in any form that the loaders know."""

import gzip
from collections.abc import Iterator
from pathlib import Path

from data.blocks.base import Row
from data.blocks.scopes import texts_in
from data.blocks.settings import Scope
from data.configs import SourceConfig
from data.forms import detect_form, mapped, parse
from data.sources import BadRow, read_rows

_COLUMNS = ("text", "content", "document")


def reference_texts(path: Path, scope: Scope) -> Iterator[str]:
    """The texts of a file, blank ones left out, in its order.

    A .txt file (also .gz) has one text a line; json, jsonl, csv and parquet hold rows with a column text, content or document, or in a
    form that the loaders know, of which the part in ``scope`` is taken. Rows that cannot be read are passed over.

    Raises:
        ValueError: the file is in an unknown format, or there is no usable text in it.
    """
    texts = _lines(path) if path.name.removesuffix(".gz").endswith(".txt") else _row_texts(path, scope)
    found = False
    for text in texts:
        if text.strip():
            found = True
            yield text
    if not found:
        raise ValueError(f"{path} holds no usable text: it needs lines of text (.txt), a column text, or rows of a known form")


def _lines(path: Path) -> Iterator[str]:
    with (
        gzip.open(path, "rt", encoding="utf-8", errors="replace")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8", errors="replace") as file
    ):
        yield from file


def _row_texts(path: Path, scope: Scope) -> Iterator[str]:
    form = None
    for raw in read_rows(SourceConfig(kind="file", name=str(path))):
        if raw.values is None:
            continue
        column = next((name for name in _COLUMNS if isinstance(raw.values.get(name), str)), None)
        if column is not None:
            yield raw.values[column]
            continue
        values = mapped(raw.values, {})
        form = form or detect_form(values, values)
        try:
            examples = parse(values, form)
        except BadRow:
            continue
        for example in examples:
            yield from texts_in(Row(0, raw.file, raw.line, example), scope)
