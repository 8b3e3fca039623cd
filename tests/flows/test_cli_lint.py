"""`posttrain lint`: files as they are downloaded, artifacts of runs, folders; what it prints and how it ends."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from data.records import Message, Preference, Prompt
from data.tables import write_table
from flows.cli import app
from models.run import write_atomic
from tasks.registry import RunRecord, StageRecord
from tasks.store import Store


def posttrain(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["lint", *arguments])
    assert done.exit_code == code, done.output
    return done.stdout


def pair(prompt: str, chosen: str, rejected: str) -> Preference:
    return Preference(f"{prompt}{chosen}", "toy", (Message("user", prompt),), chosen, rejected)


def written(folder: Path, *rows: tuple[str, str, str]) -> Path:
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) + "\n" for row in rows))
    return path


def test_a_clean_file_ends_with_0_and_a_faulty_one_with_1(home: Path, tmp_path: Path):
    clean = written(tmp_path, ("a?", "yes", "no"), ("b?", "up", "down"))
    assert "2 pairs, 0 findings" in posttrain(str(clean))
    faulty = written(tmp_path, ("a?", "yes", "no"), ("a?", "no", "yes"), ("b?", "\x1b[31mup", "\x1b[31mUP"))
    shown = posttrain(str(faulty), code=1)
    assert "fault contradiction" in shown and "fault identical" in shown and "\x1b" not in shown


def test_everything_as_json(home: Path, tmp_path: Path):
    path = written(tmp_path, ("a?", "yes", "no"), ("b?", "same", "same"))
    found = json.loads(posttrain(str(path), "--json"))
    assert found["pairs"] == 1 and found["findings"] == [] and found["length"]["longer_chosen"] == 1
    assert "1 rows cannot be used: {'chosen_equals_rejected': 1}" in CliRunner().invoke(app, ["lint", str(path)]).stderr


@pytest.mark.parametrize(("arguments", "fault"), [(["--form", "tree"], "--form 'tree' is not one of"), ([], "holds no pairs")])
def test_what_cannot_be_looked_at_is_said(home: Path, tmp_path: Path, arguments: list[str], fault: str):
    path = tmp_path / "facts.jsonl"
    path.write_text('{"prompt": "a?", "completion": "b"}\n')
    done = CliRunner().invoke(app, ["lint", str(path), *arguments])
    assert done.exit_code == 2 and fault in done.stderr.replace("\n", " ")


def test_the_sets_of_a_run_are_held_against_its_test_tables(home: Path, tmp_path: Path):
    store = Store(home / "store")
    data, pairs = tmp_path / "data", tmp_path / "pairs"
    for folder in (data, pairs):
        folder.mkdir()
    write_table(data / "test_prompts.parquet", [Prompt("p", "toy", (Message("user", "b?"),))])
    write_table(pairs / "preferences.parquet", [pair("a?", "yes", "no"), pair("B?", "up", "down")])
    stages = {
        label: StageRecord(key=label, artifact=store.put(folder, kind, {}), outcome="computed", seconds=1.0)
        for label, folder, kind in (("curate", data, "dataset"), ("collect_preferences", pairs, "preferences"))
    }
    record = RunRecord(name="mine-1", recipe="mine", config={}, status="finished", started=datetime.now(UTC), stages=stages)
    (home / "runs").mkdir(parents=True)
    write_atomic(home / "runs" / "mine-1.json", record.model_dump_json())
    shown = posttrain("mine", code=1)
    assert "mine-1/collect_preferences: 2 pairs, 1 findings" in shown and "fault leak: the prompt is also in test_prompts (1 of 2)" in shown
    assert "2 pairs, 0 findings" in posttrain("mine-1/collect_preferences"), "alone it has no test tables"
    done = CliRunner().invoke(app, ["lint", "mine-1/curate"])
    assert done.exit_code == 2 and "holds no preferences.parquet" in done.stderr.replace("\n", " ")
