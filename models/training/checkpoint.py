"""Checkpoints that are either whole or not there: safetensors and JSON, published by one rename, refused when torn or foreign.

<stage key folder>/step-000040/{tensors.safetensors, state.json, manifest.json}

Of several ranks each writes its own tensors (models/training/pieces.py); the first publishes them when all are there.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from data.files import fsync, sha256_of
from models.parallel import barrier, first_rank_says, rank
from models.run import Run
from models.training.pieces import Piece, Saved, write_tensors

MANIFEST_FILE = "manifest.json"


def save_checkpoint(run: Run, step: int, tensors: Mapping[str, Tensor | Piece], state: dict[str, Any]) -> None:
    """Write the checkpoint of ``step`` and drop older ones. A kill at any moment leaves the older or the newer one whole."""
    run.sync()
    target = run.checkpoints / f"step-{step:06d}"
    if first_rank_says(target.exists):
        return
    part = run.checkpoints / f".part-{step:06d}"
    if rank() == 0:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    barrier()
    write_tensors(part, tensors)
    run.failpoint("save")
    if rank() == 0:
        (part / "state.json").write_text(json.dumps(state), encoding="utf-8")
        publish(run, part, target, step)
    run.failpoint("saved")
    if rank() == 0:
        for old in _checkpoints(run):
            if old != target:
                shutil.rmtree(old)
    barrier()


def publish(run: Run, part: Path, target: Path, step: int) -> None:
    """Rename a folder into place, all its bytes on disk and named in its manifest."""
    files = {path.name: sha256_of(path) for path in sorted(part.iterdir())}
    (part / MANIFEST_FILE).write_text(json.dumps({"stage_key": run.stage_key, "step": step, "files": files}), encoding="utf-8")
    for name in (*files, MANIFEST_FILE):
        fsync(part / name)
    fsync(part)
    os.rename(part, target)
    fsync(target.parent)


def load_checkpoint(run: Run) -> tuple[int, Saved, dict[str, Any]] | None:
    """The newest whole checkpoint of this stage key as (step, tensors, state), or None. Others are named in the log and removed.

    It may have been written by another number of ranks.
    """
    step = first_rank_says(lambda: _newest_whole(run))
    if step is None:
        return None
    folder = run.checkpoints / f"step-{step:06d}"
    return step, Saved(folder), json.loads((folder / "state.json").read_text(encoding="utf-8"))


def _newest_whole(run: Run) -> int | None:
    for stale in run.checkpoints.glob(".part-*"):
        shutil.rmtree(stale)
    for folder in sorted(_checkpoints(run), reverse=True):
        problem = problem_of(folder, run.stage_key)
        if problem is None:
            return int(folder.name.removeprefix("step-"))
        run.log(f"checkpoint {folder.name} is refused: {problem}")
        shutil.rmtree(folder)
    return None


def drop_checkpoints(run: Run) -> None:
    """Remove all checkpoints: they cannot be resumed from."""
    for folder in _checkpoints(run) if rank() == 0 else ():
        shutil.rmtree(folder)
    barrier()


def _checkpoints(run: Run) -> list[Path]:
    return [p for p in run.checkpoints.glob("step-*") if p.is_dir()]


def problem_of(folder: Path, stage_key: str) -> str | None:
    """What is wrong with a published folder, in words; None if it is whole and of this stage key."""
    try:
        manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
        if manifest["stage_key"] != stage_key:
            return f"it belongs to the stage key {manifest['stage_key'][:12]}, not to {stage_key[:12]}"
        changed = [name for name, digest in manifest["files"].items() if sha256_of(folder / name) != digest]
    except (OSError, ValueError, KeyError) as error:
        return f"it is not complete ({error!r})"
    return f"{changed[0]} has changed since it was written" if changed else None
