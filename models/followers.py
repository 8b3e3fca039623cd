"""The process of a follower: replays a stage beside its own process and computes chunks of it (models/sharing.py).

It gets the spec of the stage (models/worker.py), with a folder of its own to write to. What it reports and what it writes there are
nobody's: only the chunks that it computes are kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from models.run import Run, Stopped
from models.sharing import Sharing
from models.worker import enter_process, execute


class FollowerRun(Run):
    """A run whose reports, progress and checkpoints the stage's own process makes."""

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing: the leader reports."""

    def rewind(self, step: int) -> None:
        """Nothing: the journal is the leader's."""
        self.resumed_step = step

    def progress(self, done: int, total: int, **rates: float) -> None:
        """Nothing: the leader tells."""

    def failpoint(self, name: str) -> None:
        """Nothing: a test kills the leader."""


def main(spec_path: Path, parent: int) -> None:
    """Replay the stage of a spec until its end, or until the one who started this process ends it."""
    spec = json.loads(spec_path.read_text(encoding="utf-8"))
    enter_process(spec, parent)
    run = FollowerRun(Path(spec["out"]), Path(spec["checkpoints"]), spec["stage_key"], spec["micro_batch_scale"])
    run.sharing = Sharing(Path(spec["sharing"]), leads=False, tick=lambda: None)
    run.sharing.require_same_machine()
    execute(spec, run)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), int(sys.argv[2]))
    except Stopped:
        sys.exit(0)
