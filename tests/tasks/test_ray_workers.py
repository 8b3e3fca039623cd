"""Ray workers beside a stage: the same bytes as without them, whatever becomes of a worker. One local Ray for all tests of the module."""

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import ray_cluster, ray_workers
from tasks.locks import try_lock
from tasks.process import StageConfigError
from tasks.stage import StageContext

pytest.importorskip("ray", reason="Ray is not installed: make install, or the extra ray")
pytest.importorskip("prefect_ray", reason="prefect-ray is not installed: make install, or the extra ray")

N_CHUNKS = 6

FILES = {
    "toymodels/chunked.py": """
from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass

from models.chunks import map_chunks
from models.seeds import derive_seed
from models.spending import count_generated
from models.run import write_atomic
from toymodels.configs import TrainConfig


@dataclass
class Item:
    id: str


def draw(config: TrainConfig, *, seed: int, run) -> dict:
    items = [Item(f"prompt-{n}") for n in range(2 * config.steps)]

    def work(number, chunk):
        if config.trouble == "prompt" and number == 3:
            raise ValueError("a prompt without words")
        if config.trouble and run.sharing and run.sharing.leads:  # a follower has its part, however slow it is
            waits_for, end = "killed" if config.trouble == "kill" else "drawn-*.json", time.monotonic() + 60
            while config.trouble != "prompt" and not list(run.checkpoints.glob(waits_for)):
                assert time.monotonic() < end, "no follower has done its part"
                time.sleep(0.01)
        if config.trouble == "kill" and run.sharing and not run.sharing.leads and not (run.checkpoints / "killed").exists():
            (run.checkpoints / "killed").touch()
            os.kill(os.getppid(), 9)
            time.sleep(60)
        count_generated(len(chunk))
        chance = random.Random(derive_seed(seed, "draw", number))
        return [[item.id, chance.random()] for item in chunk]

    drawn = map_chunks(run, "drawn", items, 2, work)
    summed = map_chunks(run, "summed", drawn, 4, lambda number, chunk: [sum(value for _, value in chunk)])
    write_atomic(run.out / "drawn.json", repr([drawn, summed]))
    return {"sum": sum(summed)}
""",
    "toytasks/drawing.py": '''
from tasks.stage import StageContext, stage
from tasks.store import Artifact
from toymodels.configs import TrainConfig
from toytasks.stages import FAST


@stage(kind="report", runs="toymodels.chunked:draw", fan_out="chunks", **FAST)
def draw(config: TrainConfig, *, seed: int, context: StageContext) -> Artifact:
    """Drawing."""
    return context.run(config, seed)
''',
    "toytasks/drawing_flow.py": """
from prefect import flow

from toytasks.drawing import draw
from toymodels.configs import TrainConfig


@flow
def drawing(config: TrainConfig, seed: int):
    return draw(config, seed=seed)
""",
}


@pytest.fixture(scope="module", autouse=True)
def _one_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("POSTTRAIN_THREADS", "1")
        patch.setenv("POSTTRAIN_RAY_WORKERS", "2")
        yield
    ray_cluster.leave_clusters()


@pytest.fixture
def draw(toy: Any, prefect_api: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    toy.write(FILES)
    monkeypatch.setenv("POSTTRAIN_RAY_WORKERS", "2")

    def drawn(ray: str, seed: int = 0, trouble: str = "") -> Any:
        monkeypatch.setenv("POSTTRAIN_RAY", ray)
        config = toy.load("toymodels.configs").TrainConfig(steps=N_CHUNKS, trouble=trouble)
        return toy.load("toytasks.drawing_flow").drawing(config, seed)

    return drawn


class LeaderHeld(threading.Thread):
    """Keeps the leader of a stage, and every follower, from a list of chunks until so many followers are there."""

    def __init__(self, home: Path, name: str, followers: int) -> None:
        super().__init__(daemon=True)
        self.home, self.chunks, self.followers = home, [f"{name}-{n:05d}.claim" for n in range(N_CHUNKS)], followers
        self.folder: Path | None = None
        self.start()

    def run(self) -> None:
        end = time.monotonic() + 120
        while self.folder is None and time.monotonic() < end:
            self.folder = next(iter((self.home / "store" / "staging").glob("*/sharing")), None)
            time.sleep(0.005)
        assert self.folder is not None
        held = [try_lock(self.folder / chunk) for chunk in self.chunks]
        while len(list(self.folder.glob("*.here"))) < self.followers and time.monotonic() < end:
            time.sleep(0.02)
        for descriptor in held:
            if descriptor is not None:
                os.close(descriptor)


def computed(lines: list[str]) -> Counter[str]:
    words = lines[-1].partition("computed by ")[2].split(", ")
    return Counter({word.split()[0]: int(word.split()[1]) for word in words})


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What stages say in the log of their run."""
    said: list[str] = []
    log = StageContext.log
    monkeypatch.setattr(StageContext, "log", lambda context, text: (said.append(text), log(context, text))[1])
    return said


def forget(home: Path) -> None:
    """Drop the records of what was computed, so that it is computed again."""
    for path in (home / "store" / "records" / "keys").iterdir():
        path.unlink()


def test_the_result_is_that_of_the_stage_alone(draw: Callable[..., Any], home: Path, lines: list[str]):
    alone = draw("", trouble="wait")
    forget(home)
    LeaderHeld(home, "drawn", followers=2)
    before = signal.getsignal(signal.SIGTERM)
    shared = draw("local", trouble="wait")
    assert signal.getsignal(signal.SIGTERM) is before, "by it Prefect cancels a run; Ray would take it"
    assert shared == alone
    shares = computed(lines)
    assert sum(shares.values()) == N_CHUNKS + 3 and len(shares) >= 2, shares
    assert "draw is shared with 2 Ray workers (local)" in lines
    (cost,) = (home / "store" / "costs").glob("draw-*.json")
    assert json.loads(cost.read_text())["generated_tokens"] == 2 * N_CHUNKS, "what workers generate is counted, once"


def test_without_a_cluster_a_stage_runs_alone_and_says_so(draw: Callable[..., Any], lines: list[str], monkeypatch: pytest.MonkeyPatch):
    def unreachable(runner: Any) -> Any:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray_cluster, "_started", unreachable)
    assert draw("10.255.0.1:6379", seed=3)
    (line,) = lines
    assert line == "draw runs in its own process alone: Ray (10.255.0.1:6379) cannot be joined: The current node timed out during startup."


def test_without_room_a_stage_runs_alone_and_says_what_would_help(
    draw: Callable[..., Any], lines: list[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ray_workers, "joined", lambda address: None)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 64.0}}, {"Alive": False, "Resources": {"GPU": 8.0}}])
    assert ray_cluster.room(4, 0) == 16 and ray_cluster.room(1, 1) == 0
    monkeypatch.setattr(ray_workers, "room", lambda cpus, gpus: 0)
    assert draw("auto", seed=4)
    assert lines[0].startswith("draw runs in its own process alone: no host of the Ray cluster (auto) has 1 processors for a Ray worker: ")
    monkeypatch.setattr(ray_workers, "visible_gpus", lambda: ["0"])
    assert "(auto) has a GPU: add one by `ray start --address=HOST:6379 --num-gpus=1`" in ray_workers._missing("auto")


@pytest.mark.parametrize(("name", "text"), [("POSTTRAIN_RAY_WORKERS", "0"), ("POSTTRAIN_RAY_WORKERS", "two")])
def test_a_number_of_workers_is_one(name: str, text: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=f"POSTTRAIN_RAY_WORKERS is '{text}': give a number of workers, 1 or more"):
        ray_cluster.workers_asked()


def test_ray_that_is_not_installed_is_an_error_that_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "prefect_ray", None)
    with pytest.raises(ValueError, match=r"POSTTRAIN_RAY is 'auto', and Ray is not installed .*'\.\[ray\]'"):
        ray_cluster.joined("auto")


def test_an_error_names_the_prompts(draw: Callable[..., Any], home: Path):
    with pytest.raises(StageConfigError, match=r"a prompt without words \(in chunk 3 of drawn, 2 items: prompt-6, prompt-7\)"):
        draw("local", seed=1, trouble="prompt")


def test_a_lost_worker_costs_nothing_but_time(draw: Callable[..., Any], home: Path):
    alone = draw("", seed=2, trouble="kill")
    forget(home)
    LeaderHeld(home, "drawn", followers=2)
    assert draw("local", seed=2, trouble="kill") == alone
