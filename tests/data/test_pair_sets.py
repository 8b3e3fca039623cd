"""Pairs of other people's files, RewardBench's form among them."""

import json
from pathlib import Path

import pytest

from data.configs import SourceConfig
from data.pair_sets import read_pair_set
from data.records import Message

ROWS = [
    {"prompt": "2 + 2?", "chosen": "4", "chosen_model": "a", "rejected": "5", "rejected_model": "b", "subset": "math-prm", "id": 1},
    {"prompt": "Say hi", "chosen": "hi", "chosen_model": "a", "rejected": "bye", "rejected_model": "b", "subset": "easy", "id": 2},
]


def source(path: Path, rows: list[dict], **settings) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return SourceConfig(kind="file", name=str(path), **settings)


def test_rows_of_rewardbench(tmp_path: Path):
    pairs, bad = read_pair_set(source(tmp_path / "filtered.jsonl", ROWS))
    assert [(one.pair.chosen, one.pair.rejected, one.subset) for one in pairs] == [("4", "5", "math-prm"), ("hi", "bye", "easy")]
    assert pairs[0].pair.prompt == (Message("user", "2 + 2?"),) and pairs[0].pair.source.endswith("filtered.jsonl")
    assert not bad


def test_a_pair_counts_once_and_a_row_without_one_is_counted(tmp_path: Path):
    rows = [*ROWS, ROWS[0], {**ROWS[1], "rejected": "hi"}, {**ROWS[1], "chosen": None}]
    pairs, bad = read_pair_set(source(tmp_path / "x.jsonl", rows))
    assert len(pairs) == 2 and bad == {"duplicate": 1, "chosen_equals_rejected": 1, "empty": 1}


def test_columns_are_mapped_and_a_subset_may_be_missing(tmp_path: Path):
    rows = [{"question": "a?", "good": "x", "bad": "y", "category": "Chat Hard"}, {"question": "b?", "good": "x", "bad": "y"}]
    columns = {"prompt": "question", "chosen": "good", "rejected": "bad", "subset": "category"}
    pairs, _ = read_pair_set(source(tmp_path / "x.jsonl", rows, columns=columns))
    assert [one.subset for one in pairs] == ["Chat Hard", ""]


def test_a_subset_that_is_no_name_is_none(tmp_path: Path):
    pairs, _ = read_pair_set(source(tmp_path / "x.jsonl", [{**ROWS[0], "subset": ["a"]}, {**ROWS[1], "subset": 7}]))
    assert [one.subset for one in pairs] == ["", "7"]


def test_a_file_without_pairs_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no row with chosen and rejected .*no_pair.*: give pairs"):
        read_pair_set(source(tmp_path / "x.jsonl", [{"prompt": "a?", "completion": "b"}]))
