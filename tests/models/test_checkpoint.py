"""A checkpoint is whole or refused, and says whose it is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from models.run import Run
from models.training import checkpoint
from models.training.checkpoint import load_checkpoint, save_checkpoint


def save(run: Run, step: int) -> Path:
    """A checkpoint whose every part says its step."""
    run.report({"train/loss": float(step)}, step)
    save_checkpoint(run, step, {"x": torch.full((4,), float(step)), "mask": torch.tensor([True, False])}, {"x": [step, 0.1, None]})
    return run.checkpoints / f"step-{step:06d}"


def save_beside(run: Run, *steps: int) -> list[Path]:
    """Several checkpoints that are there at once, as after a kill between publishing one and removing the one before."""
    kept = []
    for step in steps:
        folder = save(run, step)
        kept.append(folder.rename(folder.with_name(f"kept-{step}")))
    return [folder.rename(folder.with_name(f"step-{step:06d}")) for folder, step in zip(kept, steps, strict=True)]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


@pytest.fixture
def said(run: Run, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    return lambda: capsys.readouterr().out


def test_what_was_saved_comes_back(run: Run):
    save(run, 12)
    found = load_checkpoint(run)
    assert found is not None
    step, tensors, state = found
    assert (step, state) == (12, {"x": [12, 0.1, None]})
    assert torch.equal(tensors["x"], torch.full((4,), 12.0)) and tensors["mask"].tolist() == [True, False]


def test_nothing_saved_is_nothing_found(run: Run):
    assert load_checkpoint(run) is None


def test_only_the_newest_is_kept(run: Run):
    for step in (1, 2, 11):
        save(run, step)
    assert [path.name for path in run.checkpoints.glob("*step*")] == ["step-000011"]


def test_the_newest_whole_one_is_taken(run: Run):
    save_beside(run, 2, 10, 9)
    assert load_checkpoint(run)[0] == 10  # type: ignore[index]


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [Path.unlink, truncate, flip])
def test_a_torn_one_is_refused_and_named_and_the_older_one_is_used(run: Run, said: Callable[[], str], name: str, damage: Any):
    older, newer = save_beside(run, 3, 4)
    damage(newer / name)
    found = load_checkpoint(run)
    assert found is not None and found[0] == 3 and float(found[1]["x"][0]) == 3.0
    text = said()
    assert "checkpoint step-000004 is refused: " in text
    assert not newer.exists() and older.exists()


def test_a_changed_file_is_named(run: Run, said: Callable[[], str]):
    flip(save(run, 4) / "state.json")
    assert load_checkpoint(run) is None
    assert "state.json has changed since it was written" in said()


def test_another_stages_checkpoint_is_refused_and_both_keys_are_named(new_run: Callable[..., Run], said: Callable[[], str]):
    save(new_run(), 4)
    assert load_checkpoint(new_run(stage_key="other-stage-key")) is None
    assert "belongs to the stage key key-0, not to other-stage" in said()


def test_a_part_that_was_never_published_is_removed(run: Run):
    save(run, 1)
    part = run.checkpoints / ".part-000002"
    part.mkdir()
    (part / "tensors.safetensors").write_bytes(b"half")
    assert load_checkpoint(run)[0] == 1  # type: ignore[index]
    assert not part.exists()


def test_a_part_of_the_same_step_is_written_anew(run: Run):
    part = run.checkpoints / ".part-000002"
    part.mkdir()
    (part / "leftover").touch()
    folder = save(run, 2)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "state.json", "tensors.safetensors"]


def test_the_manifest_names_stage_key_step_and_every_file(run: Run, read_json: Callable[[Path], Any]):
    manifest = read_json(save(run, 7) / "manifest.json")
    assert (manifest["stage_key"], manifest["step"]) == ("key-0", 7)
    assert sorted(manifest["files"]) == ["state.json", "tensors.safetensors"]


def test_all_is_on_disk_before_it_is_published_and_the_metrics_before_that(run: Run, monkeypatch: pytest.MonkeyPatch):
    """A power cut must not leave a published checkpoint whose content, or whose metrics, are lost."""
    events: list[str] = []
    monkeypatch.setattr(checkpoint, "fsync", lambda path: events.append(f"fsync {path.name}"))
    rename = checkpoint.os.rename
    monkeypatch.setattr(checkpoint.os, "rename", lambda a, b: events.append("publish") or rename(a, b))
    monkeypatch.setattr(run, "sync", lambda: events.append("sync journal"))
    save(run, 1)
    published = events.index("publish")
    files = {"fsync tensors.safetensors", "fsync state.json", "fsync manifest.json", "fsync .part-000001"}
    assert events[0] == "sync journal" and set(events[1:published]) == files
    assert events[published + 1 :] == ["fsync checkpoints"], "the new name too"


def test_a_second_save_of_a_step_changes_nothing(run: Run):
    folder = save(run, 1)
    before = (folder / "manifest.json").stat().st_mtime_ns
    save(run, 1)
    assert (folder / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(("failpoint", "left"), [("save:3", 2), ("saved:3", 3)])
def test_a_kill_in_the_middle_leaves_the_older_or_the_newer_one_whole(stage_process: Callable[..., Any], tmp_path: Path, failpoint, left):
    """SIGKILL while step 3 is written, and after it was published but before step 2 is removed."""
    counting = stage_process(tmp_path / "stage", "interrupted:saves", Steps(), {})
    counting.kill(failpoint)
    found = sorted(path.name for path in counting.checkpoints.glob("*-00000?"))
    assert found == ([".part-000003", "step-000002"] if left == 2 else ["step-000002", "step-000003"])
    assert json.loads((counting.checkpoints / f"step-{left:06d}" / "state.json").read_text()) == {"x": left}
    assert counting.run().meta == {"began": left}
    assert counting.saved_steps() == [5]


class Steps:
    """A configuration of the counting stage."""

    def model_dump(self, mode: str) -> dict[str, int]:
        return {"steps": 5}
