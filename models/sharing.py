"""Chunks of a stage shared out among processes: its own, the leader, and followers, which replay the stage and compute chunks of it.

All see one folder, on storage that their hosts share:

    leader.json               {"machine"}: whose numbers it makes
    call-000.json             {"name": "answers"}: the leader's first call of map_chunks
    HOST-1234.here            a follower has come as far as its first call
    answers-00003.claim       locked by whoever computes that chunk
    answers-00003.done        {"by", "generated_tokens"}: who did
    answers-00003.refused     a follower could not compute it: the leader will, or fails as it would have alone
    ended                     the stage is over

A chunk is the same whoever computes it: its seed and its batch are made of its number and its items. A follower goes on to what lies
between two calls when the leader has done so, and computes nothing there that the leader has not.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path

from data.claims import claim
from models.run import write_atomic
from models.spending import count_generated, generated_tokens

POLL_S = 0.05
LEADER_WAIT_S = 120.0
COMPUTING = ("torch", "transformers", "tokenizers", "numpy", "vllm")
LATE_FACTOR, LATE_S = 3.0, 30.0  # a chunk that takes this many times as long as the slowest here, and so much more, is not waited for


class Sharing:
    """One process's view of the folder. ``tick`` is called while it waits; it may raise to stop. ``followers``: how many were started."""

    def __init__(self, folder: Path, leads: bool, tick: Callable[[], None], followers: int = 0) -> None:
        self.folder, self.leads, self.tick, self.followers = folder, leads, tick, followers
        self.who = f"{platform.node()}-{os.getpid()}"
        self.calls = 0
        self.nested = False
        self.slowest_s = 0.0
        if leads:
            write_atomic(folder / "leader.json", json.dumps({"machine": machine()}))

    def require_same_machine(self) -> None:
        """Wait for the leader.

        Raises:
            ValueError: this host, or what is installed on it, would compute other last digits than the leader's.
        """
        path = self.folder / "leader.json"
        self._wait(path.exists, LEADER_WAIT_S)
        wanted, here = json.loads(path.read_text(encoding="utf-8"))["machine"], machine()
        if wanted != here:
            raise ValueError(
                f"{platform.node()} is {here!r} and the stage runs on {wanted!r}, so that numbers would differ in their last digits: "
                "let Ray workers run on hosts of the stage's kind, with the same versions installed"
            )

    def numbers(self, name: str, kept: Sequence[Path], shared: bool) -> Iterator[int]:
        """The chunks that fall to this process, one after the other; when it ends every chunk is there.

        kept: where each chunk's result will be. A single chunk, and what a chunk calls in turn, is the business of one process.
        shared: False: all of them are the leader's.
        """
        if self.nested:
            yield from (number for number, path in enumerate(kept) if not path.exists())
            return
        self._enter(name)
        idle_since = time.monotonic()
        while missing := [number for number, path in enumerate(kept) if not path.exists()]:
            late = time.monotonic() - idle_since > LATE_S + LATE_FACTOR * self.slowest_s
            for number in missing if self.leads or (shared and len(kept) > 1) else ():
                if not self.leads and self._file(name, number, "refused").exists():
                    continue
                with claim(self._file(name, number, "claim")) as mine:
                    if (mine or late) and not kept[number].exists():
                        yield from self._computed(name, number)
                        idle_since = time.monotonic()
                        break
            else:
                self._rest()
        if self.leads:
            self._count_others(name, len(kept))
        else:
            self._wait(self._call(self.calls).exists)

    def refuse(self, name: str, number: int) -> None:
        """Say that this process could not compute a chunk, so that the leader does, or fails, and nobody else tries."""
        if not self.leads:
            self._file(name, number, "refused").touch()

    def _enter(self, name: str) -> None:
        path = self._call(self.calls)
        self.calls += 1
        if self.leads:
            write_atomic(path, json.dumps({"name": name}))
            return
        (self.folder / f"{self.who}.here").touch()
        if path.exists() and (led := json.loads(path.read_text(encoding="utf-8"))["name"]) != name:
            raise RuntimeError(f"the stage computes {led} and this process, which follows it, {name}: the stage does not replay")

    def _computed(self, name: str, number: int) -> Iterator[int]:
        began, tokens = time.monotonic(), generated_tokens()
        self.nested = True
        try:
            yield number
        finally:
            self.nested = False
        self.slowest_s = max(self.slowest_s, time.monotonic() - began)
        done = {"by": self.who, "generated_tokens": generated_tokens() - tokens}
        write_atomic(self._file(name, number, "done"), json.dumps(done))

    def _count_others(self, name: str, count: int) -> None:
        """Count what others generated. A chunk's result is there a moment before the word of who made it: while it is claimed, wait."""
        self._wait(lambda: all(self._is_told(name, number) for number in range(count)))
        told = [json.loads(path.read_text(encoding="utf-8")) for path in self.folder.glob(f"{name}-*.done")]
        count_generated(sum(done["generated_tokens"] for done in told if done["by"] != self.who))

    def _is_told(self, name: str, number: int) -> bool:
        if self._file(name, number, "done").exists():
            return True
        with claim(self._file(name, number, "claim")) as nobody_will:
            return nobody_will

    def _call(self, number: int) -> Path:
        return self.folder / f"call-{number:03d}.json"

    def _file(self, name: str, number: int, kind: str) -> Path:
        return self.folder / f"{name}-{number:05d}.{kind}"

    def _wait(self, seen: Callable[[], bool], longest_s: float = math.inf) -> None:
        end = time.monotonic() + longest_s
        while not seen():
            if time.monotonic() > end:
                raise TimeoutError(f"the stage's own process has not shown itself in {self.folder} for {longest_s:.0f} s")
            self._rest()

    def _rest(self) -> None:
        self.tick()
        time.sleep(POLL_S)


def computed_by(folder: Path) -> Counter[str]:
    """How many chunks each process computed, by its host and process id."""
    return Counter(json.loads(path.read_text(encoding="utf-8"))["by"] for path in folder.glob("*.done"))


def machine() -> str:
    """What the last digits of a number depend on, in words: the processor, or the GPU, and the libraries that compute."""
    installed = {name for name in COMPUTING if any(metadata.distributions(name=name))}
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in COMPUTING if name in installed)
    return f"{_device()}, {versions}, Python {platform.python_version()}"


def _device() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} with CUDA {torch.version.cuda}"
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{model} with {torch.backends.cpu.get_cpu_capability()}"
