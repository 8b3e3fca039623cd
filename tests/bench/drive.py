"""Two sides in turn: A B A B, each asleep while the other works, and what the pairs of laps say."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.home import ENVIRONMENT
from tests.bench.work import WORKS

ROOT = Path(__file__).resolve().parents[2]


class Side:
    """A process at the gate."""

    def __init__(self, kind: str, name: str, model: Path, folder: Path, variant: str = "", extra_path: str = "") -> None:
        folder.mkdir(parents=True)
        self.log = folder / "log.txt"
        environment = {**ENVIRONMENT, **os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [extra_path, str(ROOT)]))}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.bench.side", kind, name, str(model), str(folder / "work"), variant],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._answer()

    def lap(self) -> dict[str, Any]:
        """Run one lap."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
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
        self.process.wait()


@dataclass
class Result:
    """Laps of both sides. Rates are units of work a second; a lap of "steps" counts as one, one of "pairs" as its batch."""

    name: str
    ours: list[dict[str, Any]] = field(default_factory=list)
    peer: list[dict[str, Any]] = field(default_factory=list)

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
        return {
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


def compare(name: str, model: Path, laps: int, warmup: int, variant: str, ppo_path: str) -> Result:
    """Time our side against the peer's in one comparison."""
    result = Result(name)
    with tempfile.TemporaryDirectory() as folder:
        sides: list[Side] = []
        try:
            sides.append(Side("ours", name, model, Path(folder) / "ours"))
            sides.append(Side("peer", name, model, Path(folder) / "peer", variant, ppo_path if name == "ppo" else ""))
            for lap in range(warmup + laps):
                for side, kept in zip(sides, (result.ours, result.peer), strict=True):
                    measured = side.lap()
                    if lap >= warmup:
                        kept.append(measured)
                    print(f"  {name} lap {lap + 1 - warmup}: {measured}", file=sys.stderr, flush=True)
        finally:
            for side in sides:
                side.close()
    return result
