"""Examples of a source, each row in the form that the source has."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data.configs import Form, SourceConfig
from data.forms import Example, detect_form, mapped, parse
from data.sources import BadRow, RawRow, read_rows

_PEEKED_ROWS = 32  # a column may be left out of some rows


def examples_of(source: SourceConfig) -> Iterator[tuple[RawRow, Sequence[Example | BadRow]]]:
    """Each row with its examples, or with why it has none."""
    rows = read_rows(source)
    head = list(itertools.islice(rows, _PEEKED_ROWS))
    form = source.form
    readable = [row.values for row in head if row.values is not None]
    if readable:
        _check_columns(source, readable)
        named = [mapped(values, source.columns) for values in readable]
        form = detect_form({column for row in named for column in row}, named[0]) if form == "auto" else form

    for row in itertools.chain(head, rows):
        yield row, _parsed(row, source.columns, form)


def _parsed(row: RawRow, columns: Mapping[str, str], form: Form) -> Sequence[Example | BadRow]:
    if row.values is None:
        return [row.fault or BadRow("wrong_type", "the row has no values")]
    try:
        return parse(mapped(row.values, columns), form)
    except BadRow as fault:
        return [fault]


def _check_columns(source: SourceConfig, rows: Sequence[Mapping[str, Any]]) -> None:
    seen = {column for row in rows for column in row}
    for ours, theirs in source.columns.items():
        if theirs not in seen and theirs.split(".")[0] not in seen:
            raise ValueError(f"columns maps {ours} to {theirs!r}, which {source.place} does not have; its columns are {sorted(seen)}")
