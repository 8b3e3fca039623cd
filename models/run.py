"""What a running stage sees of the world around it: where to write, where to resume, how to report, when to stop.

A loop in `models/` or `data/` gets one `Run` and nothing else. It knows no Prefect and no MLflow: metrics go to a journal in
the folder of the stage key, which survives `kill -9` and is forwarded by whoever follows it.

    {"step": 12, "time": 1763712000.1, "metrics": {"train/loss": 1.93}}      one line a report, in `checkpoints/journal.jsonl`
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from models.sharing import Sharing

EXIT_STOPPED = 128 + signal.SIGTERM
PROGRESS_EVERY_S = 0.5


class Stopped(SystemExit):
    """Raised by a loop that saw `run.stopping` and has saved: the process leaves with 143. No `except Exception` can swallow it."""

    def __init__(self) -> None:
        super().__init__(EXIT_STOPPED)


def write_atomic(path: Path, text: str) -> None:
    """Replace `path` by `text` so that a reader, or a crash, sees the old text or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The reports in a journal; what follows a line torn by a kill is not read."""
    if not path.exists():
        return []
    reports = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            reports.append(json.loads(line))
        except ValueError:
            break
    return reports


class Run:
    """The handle of one attempt at one stage.

    out: an empty folder; the files written here become the artifact if the stage succeeds, and vanish if it does not.
    checkpoints: the folder of this stage key; it is the same one in the next attempt, so that a killed stage resumes.
    stage_key: to be written in every checkpoint and compared before one is loaded.
    micro_batch_scale: 1.0, or 0.5 in the attempt after memory ran out.
    resumed_step: the step given to `rewind`, None while this attempt started from nothing.
    sharing: the other processes that compute chunks of this stage, None where there are none.
    """

    def __init__(self, out: Path, checkpoints: Path, stage_key: str, micro_batch_scale: float = 1.0) -> None:
        self.out = Path(out)
        self.checkpoints = Path(checkpoints)
        self.stage_key = stage_key
        self.micro_batch_scale = micro_batch_scale
        self.resumed_step: int | None = None
        self.sharing: Sharing | None = None
        self._journal: IO[str] | None = None
        self._progress_at = 0.0
        self._asked_to_stop = False
        self._loop_looks = False
        self._failpoint = os.environ.get("POSTTRAIN_FAILPOINT", "")
        self._failpoint_hits = 0

    @property
    def device(self) -> torch.device:
        """The device of this process: the one GPU it was given, else the CPU."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    # Metrics

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Append the metrics of one step to the journal; they outlive the process from here on."""
        if self._journal is None:
            self._open_journal(keep_until=None)
        assert self._journal is not None
        line = {"step": int(step), "time": round(time.time(), 3), "metrics": {name: float(value) for name, value in metrics.items()}}
        self._journal.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Say that a checkpoint of `step` was loaded: reports of later steps are dropped, since they will be made again.

        An attempt that reports without having called this started from nothing, and its journal starts empty.
        """
        self.resumed_step = step
        self._open_journal(keep_until=step)

    def sync(self) -> None:
        """Force the journal to disk. Call before a checkpoint is published: it must not be ahead of its own metrics after a power cut."""
        if self._journal is not None:
            self._journal.flush()
            os.fsync(self._journal.fileno())

    def _open_journal(self, keep_until: int | None) -> None:
        if self._journal is not None:
            self._journal.close()
        path = self.checkpoints / "journal.jsonl"
        kept = [] if keep_until is None else [entry for entry in read_journal(path) if entry["step"] <= keep_until]
        write_atomic(path, "".join(json.dumps(entry) + "\n" for entry in kept))
        self._journal = path.open("a", encoding="utf-8", buffering=1)

    # What the user sees while it runs

    def progress(self, done: int, total: int, **rates: float) -> None:
        """Tell how far the stage is, e.g. `progress(3, 40, tokens_per_s=310)`. Also the sign of life that the hang detector waits for."""
        now = time.monotonic()
        if done < total and now - self._progress_at < PROGRESS_EVERY_S:
            return
        self._progress_at = now
        path = self.checkpoints / "progress.json"
        temporary = path.with_name(".progress.json.tmp")
        temporary.write_text(json.dumps({"done": int(done), "total": int(total), "rates": rates, "time": time.time()}), encoding="utf-8")
        os.replace(temporary, path)

    def log(self, text: str) -> None:
        """One line for the log of this stage."""
        print(text, flush=True)

    # Stopping

    @property
    def stopping(self) -> bool:
        """True once SIGTERM came: finish the step, save, `raise Stopped`."""
        self._loop_looks = True
        return self._asked_to_stop

    def stop_if_asked(self) -> None:
        """Leave now if SIGTERM came; for places where nothing is left to save."""
        if self.stopping:
            raise Stopped

    def on_sigterm(self, signum: int, frame: object) -> None:
        """Signal handler of the worker. Code that has never looked at `stopping` has nothing to save and is left at once."""
        self._asked_to_stop = True
        if not self._loop_looks:
            raise Stopped

    def failpoint(self, name: str) -> None:
        """Die by SIGKILL here if POSTTRAIN_FAILPOINT is "name:count": at the count-th passage of a process, once for a stage key.

        How the tests kill a trainer in the middle of a step or of a save, at the same place every time.
        """
        wanted, _, count = self._failpoint.partition(":")
        if wanted != name:
            return
        self._failpoint_hits += 1
        fired = self.checkpoints / f"failpoint-{name}-{count or 1}"
        if self._failpoint_hits == int(count or 1) and not fired.exists():
            fired.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def close(self) -> None:
        """Flush and close the journal."""
        if self._journal is not None:
            self.sync()
            self._journal.close()
            self._journal = None
