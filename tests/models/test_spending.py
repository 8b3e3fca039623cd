"""What a stage's process spends is added up over its attempts, however they end."""

import json
from pathlib import Path

import pytest

from models.spending import FILE, accounted, count_generated, peak_bytes, read_cost


def test_two_attempts_are_added_up(tmp_path: Path):
    with pytest.raises(RuntimeError), accounted(tmp_path):
        count_generated(7)
        raise RuntimeError
    with accounted(tmp_path):
        count_generated(5)
    cost = read_cost(tmp_path / FILE)
    assert cost is not None and cost["generated_tokens"] == 12 and cost["seconds"] >= 0
    assert cost["peak_bytes"] >= 2**20 and cost["peak_bytes"] <= peak_bytes() and cost["device_peak_bytes"] == 0


def test_the_memory_of_a_shared_process_is_nobodys(tmp_path: Path):
    with accounted(tmp_path, own_process=False):
        pass
    assert json.loads((tmp_path / FILE).read_text())["peak_bytes"] == 0


@pytest.mark.parametrize("text", [None, "{", "[]", '{"seconds": 1}', '{"seconds": "x", "generated_tokens": 0, "peak_bytes": 0}'])
def test_what_is_no_cost_counts_as_unknown(tmp_path: Path, text: str | None):
    if text is not None:
        (tmp_path / FILE).write_text(text)
    assert read_cost(tmp_path / FILE) is None
