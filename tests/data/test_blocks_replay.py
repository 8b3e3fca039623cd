"""Replay: all new rows, and a share of the old ones."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from data.blocks.base import Row
from data.blocks.replay import Replay, ReplaySettings
from data.forms import Example
from data.growth import lines_kept
from data.records import Message


def rows(file: str, lines: int) -> list[Row]:
    return [Row(0, file, line, Example((Message("user", f"{file} {line}"),), completion="yes")) for line in range(1, lines + 1)]


def stay(settings: ReplaySettings, given: list[Row], seed: int = 0) -> list[Row]:
    block = Replay(settings)
    decision = block.decide(block.describe(given), seed)
    assert set(decision.details) == set(np.flatnonzero(~decision.keep).tolist())
    return [row for row, kept in zip(given, decision.keep, strict=True) if kept]


def test_all_new_rows_stay_and_a_share_of_the_old_ones():
    given = [*rows("old.jsonl", 40), *rows("grown.jsonl", 30), *rows("new.jsonl", 7)]
    settings = ReplaySettings(share=0.25, old={"old.jsonl": -1, "grown.jsonl": 20})
    kept = stay(settings, given)
    new = [row for row in given if row.file == "new.jsonl" or (row.file == "grown.jsonl" and row.line > 20)]
    assert [row for row in kept if row in new] == new and len(kept) - len(new) == 15
    assert stay(settings, given) == kept != stay(settings, given, seed=1)


@pytest.mark.parametrize(("share", "left"), [(0.0, 0), (1.0, 10)])
def test_no_old_row_and_every_old_row(share: float, left: int):
    assert len(stay(ReplaySettings(share=share, old={"a": -1}), rows("a", 10))) == left


def test_a_file_that_grew_is_known_by_its_beginning(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    texts = ['{"prompt": "1"}\n', '{"prompt": "1"}\n{"prompt": "2"}\n', '{"prompt": "1"}\n{"prompt": "2"}\n{"prompt": "3"}']
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
    path.write_text(texts[2] + '\n{"prompt": "4"}\n')
    assert lines_kept(path, digests) == 3 and lines_kept(path, digests[:2]) == 2 and lines_kept(path, []) == 0
    path.write_text('{"prompt": "0"}\n' + texts[1])
    assert lines_kept(path, digests) == 0


def test_only_json_lines_grow(tmp_path: Path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt\n1\n")
    assert lines_kept(path, [hashlib.sha256(b"prompt\n").hexdigest()]) == 0
