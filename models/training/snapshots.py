"""Keeping the policy on its way: written to the folder of the stage key, where a killed stage finds it, and at last to the artifact."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.configs.checkpointing import CheckpointConfig, ResumeConfig
from models.loading import save_weights
from models.lora import adapters_merged
from models.parallel import rank
from models.run import Run
from models.snapshots import snapshot_folder, write_index
from models.training.checkpoint import MANIFEST_FILE, problem_of, publish


def snapshot_steps(updates: int, count: int) -> list[int]:
    """The updates after which the policy is kept: k updates / (count + 1), k = 1 ... count, rounded down, without 0; the end is none.

    By hand: 40 updates, 3: 10, 20, 30. 3 updates, 5: 1, 2.
    """
    return sorted({k * updates // (count + 1) for k in range(1, count + 1)} - {0})


@dataclass(frozen=True)
class Snapshots:
    """What a training loop keeps of its policy; without steps every method does nothing."""

    run: Run
    policy: Any
    updates: int
    steps: list[int]

    @classmethod
    def of(cls, run: Run, trainees: Any, updates: int, config: ResumeConfig) -> "Snapshots":
        """Those that the configuration asks for."""
        count = config.snapshots if isinstance(config, CheckpointConfig) else 0
        return cls(run, trainees["policy"].module if count else None, updates, snapshot_steps(updates, count))

    def keep(self, update: int) -> None:
        """Write the policy if it is time, adapters merged. A kill at any moment leaves the snapshot whole or not there."""
        if update not in self.steps:
            return
        target = snapshot_folder(self.run.checkpoints, update)
        part = target.with_name(f".part-{target.name}")
        if rank() == 0:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        with adapters_merged(self.policy):
            save_weights(self.policy, part)
        self.run.failpoint("snapshot")
        if rank() == 0:
            shutil.rmtree(target, ignore_errors=True)  # of an attempt that got further than its last checkpoint
            publish(self.run, part, target, update)
        self.run.failpoint("snapshotted")

    def lost(self, step: int) -> list[str]:
        """What is wrong with the snapshots that a checkpoint of ``step`` counts on, in words; empty if nothing is."""
        due = [snapshot_folder(self.run.checkpoints, due) for due in self.steps if due <= step]
        problems = {folder.name: problem_of(folder, self.run.stage_key) for folder in due}
        return [f"snapshot {name} is refused: {problem}" for name, problem in problems.items() if problem]

    def hand_over(self) -> None:
        """Put all of them into the artifact. They stay where they were too: this attempt may die before the artifact is there."""
        if not self.steps or rank():
            return
        for step in self.steps:
            source, target = (snapshot_folder(folder, step) for folder in (self.run.checkpoints, self.run.out))
            shutil.copytree(source, target, copy_function=_link, ignore=shutil.ignore_patterns(MANIFEST_FILE))
        write_index(self.run.out, self.updates, self.steps)


def _link(source: str, target: str) -> None:
    """A second name for the same bytes; a copy where the file system has no such names, or the two lie on different disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, Path(target))
