"""`posttrain status`: what runs now, how far it is, and an exit code for scripts."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest
from rich.console import Console

from flows.cli import status as status_module
from flows.cli.status import status
from tasks import registry
from tasks.home import home as output_folder
from tasks.registry import StageRecord
from tasks.store import Artifact

POLICY = Artifact(kind="policy", digest="ab" * 32, size_bytes=1, n_files=1)


@pytest.fixture
def shown(home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Console]:
    with open(os.devnull, "w") as nowhere:
        console = Console(file=nowhere, record=True, width=160)
        monkeypatch.setattr(status_module, "out", console)
        yield console


def words(console: Console) -> list[str]:
    return [" ".join(line.split()) for line in console.export_text().splitlines()]


@contextmanager
def training(outlook: dict | None, label: str = "sft") -> Iterator[registry.LiveRun]:
    with registry.recording("quickstart", {}) as live:
        live.stage("curate", StageRecord(key="curate-1", artifact=POLICY, outcome="hit", seconds=0.1))
        live.stage(label, StageRecord(key="sft-1", artifact=None, outcome="running", seconds=0.0))
        if outlook is not None:
            folder = output_folder() / "store" / "checkpoints" / "sft-1"
            folder.mkdir(parents=True)
            (folder / "outlook.json").write_text(json.dumps(outlook))
        yield live


def test_a_running_stage_is_shown_with_its_time_left(shown: Console) -> None:
    place = "stage 2 of 9, about 3 h left of the run"
    told = {"steps": "40 of 400 updates, 310 tokens/s", "left_s": 7800.0, "place": place, "time": time.time() + 1}
    with training(told):
        assert status("") == 0
    found = words(shown)
    assert found[0].startswith("quickstart-1, recipe quickstart, running for 0.")
    assert found[1:] == [f"sft: 40 of 400 updates, 310 tokens/s, about 2 h 10 min left, {place}", "Stages: 1 computed before, 1 running"]


def test_what_an_earlier_run_said_is_not_shown(shown: Console) -> None:
    with training({"steps": "390 of 400", "left_s": 10.0, "place": "", "time": time.time() - 60}):
        assert status("quickstart") == 0
    assert words(shown)[1] == "sft: begins, or waits for the device or for another run"


def test_a_stage_that_is_not_heard_of_is_said_to_be_silent(shown: Console) -> None:
    with training({"steps": "40 of 400", "left_s": 7.0, "place": "", "time": time.time() - 600}) as live:
        live.record.started = datetime.fromtimestamp(time.time() - 3600, UTC)
        live.stage("sft", live.record.stages["sft"])
        assert status("quickstart-1") == 0
    assert words(shown)[1] == "sft: 40 of 400, nothing heard of it for 10 min 00 s"


@pytest.mark.parametrize("content", ["", "[]", "{", '{"time": 0}'])
def test_a_torn_file_is_no_word(shown: Console, content: str) -> None:
    with training({}):
        (output_folder() / "store" / "checkpoints" / "sft-1" / "outlook.json").write_text(content)
        assert status("") == 0
    assert words(shown)[1].startswith("sft: begins")


def test_exit_codes_tell_running_finished_and_failed(shown: Console) -> None:
    assert status("") == 3
    with training(None):
        assert status("latest") == 0
    assert (status(""), status("quickstart")) == (3, 3)
    with pytest.raises(RuntimeError), training(None):
        raise RuntimeError("the \x1b[2Jdisk is full")
    assert (status(""), status("quickstart")) == (3, 1)
    assert "RuntimeError: the disk is full" in words(shown)
    with pytest.raises(ValueError, match="There is no run 'other'"):
        status("other")


def test_a_killed_run_is_not_running(shown: Console) -> None:
    with training(None) as live:
        (output_folder() / "runs" / "other-1.json").write_text(live.record.model_copy(update={"name": "other-1"}).model_dump_json())
        assert status("other-1") == 1
    assert words(shown)[0] == "other-1, recipe quickstart, killed"


def test_a_hostile_label_acts_on_nothing(shown: Console) -> None:
    with training(None, "sft[\x1b[2J[bold]]"):
        assert status("") == 0
    assert words(shown)[1] == "sft[[bold]]: begins, or waits for the device or for another run"
