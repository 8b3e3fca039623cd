"""The policy at moments on its way through training, inside its artifact.

snapshots/index.json                      {"updates": 60, "steps": [20, 40]}
snapshots/000020/{config.json, model.safetensors, tokenizer.json, ...}      a policy folder like any other; the step counts updates
"""

import json
from pathlib import Path

FOLDER = "snapshots"
INDEX_FILE = "index.json"


def snapshot_folder(folder: Path, step: int) -> Path:
    """Where the snapshot of a step lies in the folder of a policy, or of a stage that trains one."""
    return folder / FOLDER / f"{step:06d}"


def write_index(folder: Path, updates: int, steps: list[int]) -> None:
    """Say in the folder of a policy which snapshots it holds, and how many updates made the policy itself."""
    (folder / FOLDER / INDEX_FILE).write_text(json.dumps({"updates": updates, "steps": steps}), encoding="utf-8")


def read_snapshots(folder: Path) -> dict[int, Path]:
    """The folders of a policy's snapshots by step, in their order; the last is the policy itself.

    Raises:
        ValueError: the policy was trained without snapshots.
    """
    path = folder / FOLDER / INDEX_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no snapshots: train the policy with checkpoint.snapshots above 0, such as 5")
    index = json.loads(path.read_text(encoding="utf-8"))
    return {step: snapshot_folder(folder, step) for step in index["steps"]} | {index["updates"]: folder}


def snapshot_folders(folder: Path) -> list[Path]:
    """The folders of a policy's snapshots; none where there are none."""
    return sorted(path for path in (folder / FOLDER).glob("*") if path.is_dir())
