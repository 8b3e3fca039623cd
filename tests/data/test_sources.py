import csv
import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.configs import SourceConfig
from data.sources import read_rows

ROWS = [{"prompt": "2 + 2?", "completion": "4"}, {"prompt": 'é "漢"\nsecond line', "completion": "x,y"}, {"prompt": "c", "completion": "d"}]


def source(path, **fields):
    return SourceConfig(kind="file", name=str(path), **fields)


def write(path, rows):
    name = path.name.removesuffix(".gz")
    target = path.with_name("plain") if path.name.endswith(".gz") else path
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), target)
    elif name.endswith((".csv", ".tsv")):
        with target.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif name.endswith(".json"):
        target.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    else:
        target.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    if target is not path:
        path.write_bytes(gzip.compress(target.read_bytes()))
    return path


def faults(rows):
    return [(row.line, row.fault.reason) for row in rows if row.fault]


def values(rows):
    return [row.values for row in rows if row.values is not None]


FORMATS = ["jsonl", "ndjson", "json", "csv", "tsv", "parquet"]


@pytest.mark.parametrize("suffix", [*FORMATS, *(f"{name}.gz" for name in FORMATS), "JSONL"])
def test_every_format_gives_the_same_rows(tmp_path, suffix):
    path = write(tmp_path / f"rows.{suffix}", ROWS)
    rows = list(read_rows(source(path)))
    assert values(rows) == ROWS
    assert {row.file for row in rows} == {str(path)}
    assert not faults(rows)


@pytest.mark.parametrize(("suffix", "lines"), [("jsonl", [1, 2, 3]), ("parquet", [1, 2, 3]), ("csv", [2, 3, 5]), ("json", [2, 6, 10])])
def test_lines_are_those_of_the_file(tmp_path, suffix, lines):
    """In csv the second row's text goes over two lines; the JSON array is indented."""
    assert [row.line for row in read_rows(source(write(tmp_path / f"rows.{suffix}", ROWS)))] == lines


def test_one_line_of_invalid_utf8_loses_that_line_only(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff\xfe"}\n\n{"prompt": "b"}\n')
    rows = list(read_rows(source(path)))
    assert faults(rows) == [(2, "invalid_utf8")]
    assert [(row.line, row.values) for row in rows if row.values] == [(1, {"prompt": "a"}), (4, {"prompt": "b"})]


def test_other_broken_lines_of_jsonl_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '\ufeff{"a": 1}\n{"a": \n[1, 2]\n"text"\nnull\n' + "[" * 200_000 + "\n" + '{"a": ' + "1" * 5000 + "}\n", encoding="utf-8"
    )
    rows = list(read_rows(source(path)))
    assert values(rows) == [{"a": 1}]
    assert faults(rows) == [
        (2, "invalid_json"),
        (3, "wrong_type"),
        (4, "wrong_type"),
        (5, "wrong_type"),
        (6, "invalid_json"),
        (7, "invalid_json"),
    ]


def test_json_that_is_not_an_array_is_read_a_row_a_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert values(read_rows(source(path))) == [{"a": 1}, {"a": 2}]


def test_a_json_array_with_invalid_utf8_keeps_its_other_rows(tmp_path):
    path = tmp_path / "rows.json"
    path.write_bytes(b'[{"a": "\xff"},\n{"a": "b"},\n3]')
    rows = list(read_rows(source(path)))
    assert values(rows) == [{"a": "\udcff"}, {"a": "b"}]  # the form refuses the first: it cannot be encoded
    assert faults(rows) == [(3, "wrong_type")]


def test_a_torn_json_array_names_the_line(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('[{"a": 1},\n{"a": 2},\n{"a": ')
    with pytest.raises(ValueError, match=r"rows.json:3: not valid JSON"):
        list(read_rows(source(path)))


def test_csv_rows_of_the_wrong_width_are_set_aside(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfa,b\n1,2\n1,2,3\n\n\xff,4\n")
    rows = list(read_rows(source(path)))
    assert values(rows) == [{"a": "1", "b": "2"}, {"a": "\udcff", "b": "4"}]
    assert faults(rows) == [(3, "invalid_csv")]


@pytest.mark.parametrize("text", ["", "a,a\n1,2\n"])
def test_csv_needs_distinct_column_names(tmp_path, text):
    (tmp_path / "rows.csv").write_text(text)
    with pytest.raises(ValueError, match="distinct column names"):
        list(read_rows(source(tmp_path / "rows.csv")))


def test_invalid_utf8_in_parquet_loses_that_row_only(tmp_path):
    column = pa.StringArray.from_buffers(3, pa.py_buffer(b"\0\0\0\0\1\0\0\0\2\0\0\0\3\0\0\0"), pa.py_buffer(b"a\xffb"))
    pq.write_table(pa.table({"a": column}), tmp_path / "rows.parquet")
    rows = list(read_rows(source(tmp_path / "rows.parquet")))
    assert values(rows) == [{"a": "a"}, {"a": "b"}]
    assert faults(rows) == [(2, "invalid_utf8")]


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet"])
def test_a_damaged_file_is_named(tmp_path, name):
    path = write(tmp_path / name, ROWS * 100)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=name):
        list(read_rows(source(path)))


def test_an_unknown_format_lists_the_known(tmp_path):
    (tmp_path / "rows.xml").touch()
    with pytest.raises(ValueError, match=r"rows.xml.*\.jsonl, \.ndjson, \.json, \.csv"):
        list(read_rows(source(tmp_path / "rows.xml")))


def test_a_missing_file_names_its_neighbours(tmp_path):
    write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(FileNotFoundError, match=r"row.jsonl.*holds rows.jsonl"):
        list(read_rows(source(tmp_path / "row.jsonl")))


def test_a_pattern_reads_its_files_in_name_order(tmp_path):
    for name in ("b", "a"):
        write(tmp_path / f"{name}.jsonl", [{"from": name}])
    assert values(read_rows(source(tmp_path / "*.jsonl"))) == [{"from": "a"}, {"from": "b"}]


def test_rows_limits_what_is_read(tmp_path):
    path = write(tmp_path / "rows.jsonl", ROWS)
    assert values(read_rows(source(path, rows=2))) == ROWS[:2]


# The hub. Only the network's edge is replaced: the library that reads the files is the real one.


HUB = SourceConfig(kind="hub", name="someone/sums", subset="easy", split="test", revision="v1")


def test_a_hub_dataset_is_read_through_its_library(tmp_path, monkeypatch):
    import datasets

    path = write(tmp_path / "rows.jsonl", ROWS)
    real = datasets.load_dataset
    asked = []

    def local(name, subset, *, split, revision):
        asked.append((name, subset, split, revision))
        return real("json", data_files={split: str(path)}, split=split, cache_dir=str(tmp_path / "cache"))

    monkeypatch.setattr(datasets, "load_dataset", local)
    rows = list(read_rows(HUB))
    assert asked == [("someone/sums", "easy", "test", "v1")]
    assert values(rows) == ROWS
    assert (rows[2].file, rows[2].line) == ("hub:someone/sums/easy[test]", 3)


def test_an_unreachable_hub_says_what_would_do():
    """The test session is offline as far as the hub's library knows."""
    with pytest.raises(ConnectionError, match=r"cannot be reached for dataset 'someone/sums'.*kind=file.*kind=reasoning_gym.*quickstart"):
        list(read_rows(HUB))


def test_a_dataset_that_is_not_there_is_the_users_mistake(monkeypatch):
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    def missing(*_args, **_kwargs):
        raise DatasetNotFoundError("Dataset 'someone/sums' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", missing)
    with pytest.raises(ValueError, match="no hub dataset 'someone/sums'"):
        list(read_rows(HUB))
