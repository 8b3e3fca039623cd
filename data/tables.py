"""Tables of records as Parquet files: the same records give the same bytes."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from data.judgements import Candidates, Judgement
from data.records import Demonstration, Label, Preference, Prompt, Ranking, Record, Tie

R = TypeVar("R", bound=Record)

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_NAMED = [("id", pa.string()), ("source", pa.string())]
_FIELDS: dict[type[Record], list[tuple[str, pa.DataType]]] = {
    Prompt: [("messages", _MESSAGES), ("answer", pa.string()), ("verifier", pa.string()), ("metadata", pa.string())],
    Demonstration: [("messages", _MESSAGES)],
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


def write_table(path: Path, records: Iterable[R], record_type: type[R] | None = None) -> int:
    """Write records of one type; returns how many. An empty table needs ``record_type``. The file appears whole or not at all."""
    records = list(records)
    kinds = {type(record) for record in records} | ({record_type} if record_type else set())
    if len(kinds) != 1:
        raise ValueError(f"a table holds one record type, got {sorted(k.__name__ for k in kinds) or 'no record and no record_type'}")
    kind = kinds.pop()
    schema = pa.schema(_NAMED + _FIELDS[kind], metadata={_RECORD_KEY: kind.__name__.encode()})
    table = pa.Table.from_pylist([record.to_row() for record in records], schema=schema)
    staged = path.with_name(path.name + ".partial")
    pq.write_table(table, staged, compression="zstd", row_group_size=65_536)
    os.replace(staged, path)
    return len(records)


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
