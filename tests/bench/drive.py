"""Two sides in turn: A B A B, each asleep while the other works, and what the pairs of laps say."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.worker import thread_count
from tasks.home import ENVIRONMENT
from tests.bench.work import FITTING, WORKS

ROOT = Path(__file__).resolve().parents[2]
QUIET = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}


@dataclass(frozen=True)
class Setting:
    """How a comparison is run: laps that count, laps before them, the peer's way of doing the work, and what it is given.

    ``peer_environment``: "plain" gives the peer the environment that its users have, "same" gives it this project's variables (allocator,
    threads) too; with those a peer's larger buffers stay with the process and its peak grows from lap to lap.
    """

    laps: int = 5
    warmup: int = 1
    variant: str = ""
    peer_environment: str = "plain"
    ppo_path: str = ""

    def environment(self, kind: str, name: str) -> dict[str, str]:
        """Environment variables of a side; both have the same number of threads and neither reaches the network."""
        own = {**ENVIRONMENT, **os.environ}
        if kind == "peer" and self.peer_environment == "plain":
            own = {key: value for key, value in os.environ.items() if key not in ENVIRONMENT}
        extra = self.ppo_path if (kind, name) == ("peer", "ppo") else ""
        threads = str(thread_count())
        path = os.pathsep.join(filter(None, [extra, str(ROOT)]))
        return own | QUIET | {"PYTHONPATH": path, "OMP_NUM_THREADS": threads, "POSTTRAIN_THREADS": threads}


class Side:
    """A process at the gate (tests/bench/gate.py). ``settings`` is what it says of itself."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                list(command), cwd=ROOT, env=dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )
        try:
            self.settings: dict[str, Any] = self._answer()["settings"]
        except BaseException:
            self.close()
            raise

    def lap(self, case: str = "") -> dict[str, Any]:
        """Run one lap, of a case where the side has several.

        Raises:
            RuntimeError: the side has ended; the end of its log.
        """
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"go {case}".strip() + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what follows finds the end of its answers, and says why
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with {self.process.wait()}; its log ends:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()


def start(kind: str, name: str, model: Path, folder: Path, setting: Setting) -> Side:
    """Our side or the peer's, loaded and waiting."""
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "tests.bench.side", kind, name, str(model), str(folder / "work")]
    if kind == "peer":
        command.append(setting.variant or FITTING.get(name, ""))
    return Side(command, folder / "log.txt", setting.environment(kind, name))


@dataclass
class Result:
    """Laps of both sides. Rates are units of work a second; a lap of "steps" counts as one, one of "pairs" as its batch.

    flops: of each lap of each side, model FLOPs of its real tokens (tests/bench/report.py).
    """

    name: str
    ours: list[dict[str, Any]] = field(default_factory=list)
    peer: list[dict[str, Any]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    ours_flops: list[float] = field(default_factory=list)
    peer_flops: list[float] = field(default_factory=list)

    def rates(self, laps: list[dict[str, Any]]) -> list[float]:
        """Of each lap."""
        work = WORKS[self.name]
        done = {"tokens": lambda lap: lap["work"]["tokens"], "pairs": lambda lap: work.batch, "steps": lambda lap: 1}[work.unit]
        return [done(lap) / lap["seconds"] for lap in laps]

    def ratios(self) -> list[float]:
        """Our rate over the peer's, lap by lap."""
        return [a / b for a, b in zip(self.rates(self.ours), self.rates(self.peer), strict=True)]

    def summary(self) -> dict[str, Any]:
        """Medians and spread."""
        ratios = self.ratios()
        memory = [max(lap["peak_bytes"] for lap in laps) for laps in (self.ours, self.peer)]
        summary: dict[str, Any] = {
            "work": self.name,
            "unit": WORKS[self.name].unit,
            "ours_per_s": statistics.median(self.rates(self.ours)),
            "peer_per_s": statistics.median(self.rates(self.peer)),
            "ratio": statistics.median(ratios),
            "ratio_low": min(ratios),
            "ratio_high": max(ratios),
            "laps": len(ratios),
            "ours_peak_gib": memory[0] / 2**30,
            "peer_peak_gib": memory[1] / 2**30,
            "memory_ratio": memory[0] / memory[1],
        }
        for side, laps, flops in (("ours", self.ours, self.ours_flops), ("peer", self.peer, self.peer_flops)):
            summary[f"{side}_flops_per_s"] = statistics.median(f / lap["seconds"] for f, lap in zip(flops, laps, strict=True))
            summary[f"{side}_completion_tokens"] = statistics.median(lap["work"].get("completion_tokens", 0.0) for lap in laps)
        return summary


def compare(name: str, model: Path, setting: Setting) -> Result:
    """Time our side against the peer's in one comparison."""
    result = Result(name)
    with tempfile.TemporaryDirectory() as folder:
        sides: list[Side] = []
        try:
            for kind in ("ours", "peer"):
                sides.append(start(kind, name, model, Path(folder) / kind, setting))
                result.settings[kind] = sides[-1].settings
            for lap in range(setting.warmup + setting.laps):
                for side, kept in zip(sides, (result.ours, result.peer), strict=True):
                    measured = side.lap()
                    if lap >= setting.warmup:
                        kept.append(measured)
                    print(f"  {name} lap {lap + 1 - setting.warmup}: {measured}", file=sys.stderr, flush=True)
        finally:
            for side in sides:
                side.close()
    return result
