"""The suite of instructions: shares by hand, and from a file to suite.json."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.intervals import wilson
from data.measures import read_suite
from models.configs.instructions import InstructionsConfig
from models.configs.sampling import SamplingConfig
from models.configs.suites import RowsConfig
from models.run import Run
from models.suites.instructions import instructions, measures

ROWS = [
    {"key": 1, "prompt": "Say it.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 2,
        "prompt": "In German and short.",
        "instruction_id_list": ["language:response_language", "length_constraints:number_words"],
        "kwargs": [{"language": "de"}, {"num_words": 1000, "relation": "less than"}],
    },
]


def config(path: Path, **more: Any) -> InstructionsConfig:
    return InstructionsConfig(
        source=RowsConfig(name=str(path)), sampling=SamplingConfig(temperature=0, max_tokens=6), resamples=100, **more
    )


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "ifeval.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def test_shares_by_hand(rows_file: Path):
    """Prompt a keeps its only instruction; b one of three strictly, two loosely: prompts 1/2, instructions 2/4 and 3/4."""
    rows = [
        {"id": "a", "instructions": ["n:x"], "strict": [True], "loose": [True]},
        {"id": "b", "instructions": ["n:x", "n:y", "n:x"], "strict": [False, False, True], "loose": [True, False, True]},
    ]
    found = {measure.name: measure for measure in measures(rows, config(rows_file), 0)}
    assert {name: measure.mean for name, measure in found.items()} == pytest.approx(
        {
            "prompt_strict": 0.5,
            "prompt_loose": 0.5,
            "instruction_strict": 0.5,
            "instruction_loose": 0.75,
            "instruction_strict/kind=n:x": 2 / 3,
            "instruction_strict/kind=n:y": 0.0,
        }
    )
    assert found["instruction_strict"].values == {"a": 0.5, "b": 0.5}
    assert (found["instruction_strict"].low, found["instruction_strict"].high) == (pytest.approx(1 / 3), 1.0)
    assert found["instruction_strict/kind=n:x"].low == wilson(2, 3).low


def test_from_a_file_to_a_suite(base: Path, run: Run, rows_file: Path, journal: Callable[..., Any]):
    instructions(config(rows_file, name="ifeval"), policy=base, seed=0, run=run)
    suite = read_suite(run.out)
    assert (suite.suite, suite.kind, [item["id"] for item in suite.items]) == ("ifeval", "instructions", ["1", "2"])
    assert [len(item["strict"]) for item in suite.items] == [1, 2] and all(item["n_tokens"] <= 6 for item in suite.items)
    for item in suite.items:
        assert all(loose or not strict for strict, loose in zip(item["strict"], item["loose"], strict=True))
    named = {name for _, metrics in journal(run) for name in metrics}
    assert {"suite/prompt_strict", "suite/instruction_loose_high", "suite/instruction_strict/kind:punctuation:no_comma"} <= named


def test_a_row_of_another_form_is_named(base: Path, run: Run, rows_file: Path):
    rows_file.write_text(json.dumps(ROWS[0]) + "\n" + json.dumps(ROWS[0] | {"kwargs": [{"x": 1}]}) + "\n")
    with pytest.raises(ValueError, match=r"ifeval\.jsonl:2 cannot be used \(wrong_parameters: punctuation:no_comma takes \[\]"):
        instructions(config(rows_file), policy=base, seed=0, run=run)


def test_another_file_is_another_key(rows_file: Path):
    before = config(rows_file).source.cache_extra()
    rows_file.write_text(rows_file.read_text() + "\n")
    assert before.keys() == {"ifeval.jsonl"} and config(rows_file).source.cache_extra() != before
