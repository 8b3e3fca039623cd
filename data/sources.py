"""Rows as they come: local json, jsonl, csv and parquet files (also .gz) and hub datasets, each row with its file and line.

A row that cannot be read is handed on with the fault, and the reading goes on; a file that cannot be read is a ValueError.
"""

import csv
import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.configs import SourceConfig


class BadRow(ValueError):
    """A row that cannot be used: one word of reason, and what exactly is wrong."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row of a file (``line`` counts from 1; for parquet and hub datasets it is the row's number). Either values or a fault."""

    file: str
    line: int
    values: dict[str, Any] | None = None
    fault: BadRow | None = None


def read_rows(config: SourceConfig) -> Iterator[RawRow]:
    """All rows of a file or hub source, in order, at most ``config.rows`` of them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file in an unknown format, or damaged as a whole.
        ConnectionError: the hub cannot be reached.
    """
    rows = _hub_rows(config) if config.kind == "hub" else itertools.chain.from_iterable(map(_file_rows, config.paths()))
    return itertools.islice(rows, config.rows or None)


def _file_rows(path: Path) -> Iterator[RawRow]:
    name = path.name.lower().removesuffix(".gz")
    readers = {".jsonl": _jsonl, ".ndjson": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    suffix = Path(name).suffix
    if suffix not in readers:
        raise ValueError(f"cannot tell the format of {str(path)!r}; its name must end in {', '.join(readers)}, or one of these and .gz")
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as file:
            yield from readers[suffix](path, file)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged: {error}. Fetch it again") from error


def _checked(file: str, line: int, values: Any) -> RawRow:
    if isinstance(values, dict):
        return RawRow(file, line, values=values)
    return RawRow(file, line, fault=BadRow("wrong_type", f"a row is an object of named columns, this is {type(values).__name__}"))


def _jsonl(path: Path, file: Iterable[bytes]) -> Iterator[RawRow]:
    for line, raw in enumerate(file, start=1):
        try:
            text = raw.decode("utf-8-sig" if line == 1 else "utf-8")
            if not text.strip():
                continue
            yield _checked(str(path), line, json.loads(text))
        except UnicodeDecodeError as error:
            yield RawRow(str(path), line, fault=BadRow("invalid_utf8", f"byte {error.start} of the line is not UTF-8"))
        except (ValueError, RecursionError) as error:
            yield RawRow(str(path), line, fault=BadRow("invalid_json", str(error)))


def _json(path: Path, file: IO[bytes]) -> Iterator[RawRow]:
    """An array of rows; a file named .json that holds a row a line is read as jsonl."""
    raw = file.read()
    # Undecodable bytes become lone surrogates, so that only the rows that hold them are lost.
    text = raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    start = len(text) - len(text.lstrip())
    if text[start : start + 1] != "[":
        yield from _jsonl(path, io.BytesIO(raw))
        return
    decoder, position, line, counted = json.JSONDecoder(), start + 1, 1, 0
    while True:
        position = _skip_separators(text, position)
        line, counted = line + text.count("\n", counted, position), position
        if text[position : position + 1] == "]":
            return
        try:
            values, position = decoder.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{line}: not valid JSON from here on: {error}") from error
        yield _checked(str(path), line, values)


def _skip_separators(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n,":
        position += 1
    return position


def _csv(path: Path, file: IO[bytes]) -> Iterator[RawRow]:
    csv.field_size_limit(sys.maxsize)
    with io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        reader = csv.reader(text, delimiter="\t" if ".tsv" in path.name.lower() else ",")
        header = next(reader, None)
        if header is None or len(set(header)) < len(header):
            raise ValueError(f"{path} needs a first line of distinct column names, it has {header}")
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield RawRow(str(path), line, fault=BadRow("invalid_csv", str(error)))
                continue
            if len(values) == len(header):
                yield RawRow(str(path), line, values=dict(zip(header, values, strict=True)))
            elif values:
                yield RawRow(str(path), line, fault=BadRow("invalid_csv", f"{len(values)} fields under {len(header)} column names"))


def _parquet(path: Path, file: IO[bytes]) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    seekable = pa.py_buffer(file.read()) if path.name.lower().endswith(".gz") else path
    try:
        batches = pq.ParquetFile(seekable).iter_batches(batch_size=1024)
        line = 0
        for batch in batches:
            for index in range(batch.num_rows):
                line += 1
                yield _parquet_row(str(path), line, batch.slice(index, 1))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is not a readable Parquet file: {error}") from error


def _parquet_row(file: str, line: int, row: Any) -> RawRow:
    try:
        return RawRow(file, line, values=row.to_pylist()[0])
    except UnicodeDecodeError as error:
        return RawRow(file, line, fault=BadRow("invalid_utf8", str(error)))


def _hub_rows(config: SourceConfig) -> Iterator[RawRow]:
    place = f"hub:{config.name}" + (f"/{config.subset}" if config.subset else "") + f"[{config.split}]"
    for line, values in enumerate(_open_hub(config), start=1):
        yield _checked(place, line, values)


def _open_hub(config: SourceConfig) -> Iterable[Any]:
    """The dataset of a hub source. Nothing of a dataset repository is executed: only its data files are read."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        return datasets.load_dataset(config.name, config.subset or None, split=config.split, revision=config.revision or None)
    except DatasetNotFoundError as error:
        raise ValueError(f"there is no hub dataset {config.name!r} that you may read: {error}") from error
    except (ConnectionError, TimeoutError, OSError) as error:
        raise ConnectionError(
            f"the Hugging Face hub cannot be reached for dataset {config.name!r} ({type(error).__name__}: {error}). Without it: download "
            "the files elsewhere and use kind=file, or use kind=reasoning_gym, which needs no network (recipe quickstart, packaged model)"
        ) from error
