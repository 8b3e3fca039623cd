"""Tables of records as Parquet files: the same records give the same bytes."""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from data.judgements import Candidates, Judgement
from data.records import Demonstration, Document, Label, Preference, Prompt, Ranking, Record, Tie

R = TypeVar("R", bound=Record)

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_NAMED = [("id", pa.string()), ("source", pa.string())]
_FIELDS: dict[type[Record], list[tuple[str, pa.DataType]]] = {
    Prompt: [("messages", _MESSAGES), ("answer", pa.string()), ("verifier", pa.string()), ("metadata", pa.string())],
    Demonstration: [("messages", _MESSAGES)],
    Document: [("text", pa.string())],
    Preference: [("prompt", _MESSAGES), ("chosen", pa.string()), ("rejected", pa.string()), ("margin", pa.float64())],
    Tie: [("prompt", _MESSAGES), ("first", pa.string()), ("second", pa.string())],
    Label: [("prompt", _MESSAGES), ("completion", pa.string()), ("desirable", pa.bool_())],
    Ranking: [
        ("prompt", _MESSAGES),
        ("completions", pa.list_(pa.string())),
        ("ranks", pa.list_(pa.int64())),
        ("scores", pa.list_(pa.float64())),
    ],
    Candidates: [
        ("prompt", _MESSAGES),
        ("completions", pa.list_(pa.string())),
        ("writers", pa.list_(pa.string())),
        ("answer", pa.string()),
        ("verifier", pa.string()),
        ("metadata", pa.string()),
    ],
    Judgement: [
        ("judge", pa.string()),
        ("prompt", _MESSAGES),
        ("completions", pa.list_(pa.string())),
        ("ranks", pa.list_(pa.int64())),
        ("grade", pa.int64()),
        ("scores", pa.list_(pa.float64())),
        ("order", pa.list_(pa.int64())),
        ("reason", pa.string()),
        ("comment", pa.string()),
    ],
}
_RECORD_KEY = b"posttrain.record"
_GROUP_ROWS = 65_536
_READ_ROWS = 4_096  # divides the above


def write_table(path: Path, records: Iterable[R], record_type: type[R] | None = None) -> int:
    """Write records of one type, read a few at a time; returns how many. An empty table needs ``record_type``.

    The file appears whole or not at all.
    """
    stream = iter(records)
    head = list(itertools.islice(stream, _READ_ROWS))
    schema = _schema(head, record_type)
    staged = path.with_name(path.name + ".partial")
    written = 0
    with pq.ParquetWriter(staged, schema, compression="zstd") as writer:
        for group in _row_groups(itertools.chain(head, stream), schema):
            writer.write_table(group, row_group_size=_GROUP_ROWS)
            written += len(group)
    os.replace(staged, path)
    return written


def _schema(records: Iterable[Record], record_type: type[Record] | None) -> pa.Schema:
    kinds = {type(record) for record in records} | ({record_type} if record_type else set())
    if len(kinds) != 1:
        raise ValueError(f"a table holds one record type, got {sorted(k.__name__ for k in kinds) or 'no record and no record_type'}")
    kind = kinds.pop()
    return pa.schema(_NAMED + _FIELDS[kind], metadata={_RECORD_KEY: kind.__name__.encode()})


def _row_groups(records: Iterator[Record], schema: pa.Schema) -> Iterator[pa.Table]:
    """The records as tables of ``_GROUP_ROWS``; as Python objects only a few of them are there at a time. At least one table."""
    parts: list[pa.Table] = []
    for number in itertools.count():
        batch = list(itertools.islice(records, _READ_ROWS))
        if batch:
            named = schema.metadata[_RECORD_KEY].decode()
            if strange := {type(record).__name__ for record in batch} - {named}:
                raise ValueError(f"a table holds one record type, got {sorted(strange | {named})}")
            parts.append(pa.Table.from_pylist([record.to_row() for record in batch], schema=schema))
        if sum(map(len, parts)) == _GROUP_ROWS or (not batch and (parts or not number)):
            yield pa.concat_tables(parts).combine_chunks() if parts else schema.empty_table()
            parts = []
        if not batch:
            return


def read_table(path: Path, record_type: type[R]) -> list[R]:
    """Records of a table, in order.

    Raises:
        FileNotFoundError: there is no such table; the message names the tables that are there.
        ValueError: the file is not a table of this record type.
    """
    if not path.is_file():
        there = sorted(p.name for p in path.parent.glob("*.parquet")) if path.parent.is_dir() else []
        raise FileNotFoundError(f"no table {path.name} in {path.parent}; it holds {there or 'no table'}")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet table: {error}") from error
    found = (table.schema.metadata or {}).get(_RECORD_KEY, b"unknown rows").decode()
    if found != record_type.__name__:
        raise ValueError(f"{path} holds {found}, not {record_type.__name__}: pass the stage the artifact of the right kind")
    return [record_type.from_row(row) for row in table.to_pylist()]
