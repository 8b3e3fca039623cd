"""A small project of its own, whose stages take milliseconds: what the tests of the stage machinery run, edit and kill."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tasks import process

FILES = {
    "toymodels/__init__.py": "",
    "toymodels/far.py": '''
"""Two imports away from the stages."""
SCALE = 2


def scaled(value):
    """Scale a value."""
    return value * SCALE  # a comment
''',
    "toymodels/near.py": """
from toymodels.far import scaled


def twice(values):
    return [scaled(value) for value in values]
""",
    "toymodels/unrelated.py": "X = 1\n",
    "toymodels/configs.py": """
from pydantic import BaseModel, ConfigDict, Field


class NumbersConfig(BaseModel):
    model_config = ConfigDict(frozen=True)
    count: int = 4
    log_every: int = Field(10, json_schema_extra={"cache": False})


class TrainConfig(BaseModel):
    model_config = ConfigDict(frozen=True)
    steps: int = 6
    pause_s: float = Field(0.0, json_schema_extra={"cache": False})
    trouble: str = Field("", json_schema_extra={"cache": False})
""",
    "toymodels/log.py": '''
import os
from pathlib import Path


def note(text):
    """Who really ran: one line an execution, in a file that all processes share."""
    with Path(os.environ["POSTTRAIN_TOY_LOG"]).open("a") as file:
        file.write(f"{text}\\n")
''',
    "toymodels/report.py": """
import json

from toymodels.configs import NumbersConfig
from toymodels.log import note


def summary(config: NumbersConfig, *, models: dict, run) -> dict:
    note("summary")
    sums = {name: json.loads((path / "model.json").read_text())["sum"] for name, path in models.items()}
    (run.out / "report.json").write_text(json.dumps(sums))
    return sums
""",
    "toymodels/work.py": """
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from models.run import Stopped, write_atomic
from toymodels.configs import NumbersConfig, TrainConfig
from toymodels.log import note


def numbers(config: NumbersConfig, *, seed: int, run) -> dict:
    from toymodels.near import twice

    note("numbers")
    (run.out / "numbers.json").write_text(json.dumps(twice([seed + i for i in range(config.count)])))
    run.report({"data/rows": config.count}, 0)
    return {"rows": config.count}


def train(config: TrainConfig, *, data: Path, seed: int, run) -> dict:
    note(f"train {run.micro_batch_scale} {os.getpid()}")
    trouble(config, run)
    state = {"step": 0, "sum": 0}
    saved = run.checkpoints / "state.json"
    if saved.exists():
        state = json.loads(saved.read_text())
        run.rewind(state["step"])
    numbers = json.loads((data / "numbers.json").read_text())
    for step in range(state["step"] + 1, config.steps + 1):
        time.sleep(config.pause_s)
        state = {"step": step, "sum": state["sum"] + numbers[step % len(numbers)]}
        run.report({"train/sum": state["sum"]}, step)
        run.progress(step, config.steps)
        run.failpoint("step")
        if step % 2 == 0 or run.stopping:
            run.sync()
            write_atomic(saved, json.dumps(state))
        if run.stopping:
            note("saved")
            raise Stopped
    (run.out / "model.json").write_text(json.dumps(state))
    return {"sum": state["sum"]}


def trouble(config, run):
    if config.trouble == "config":
        raise ValueError("train.steps is 7: give an even number")
    if config.trouble == "bug":
        {}["missing"]
    if config.trouble == "oom" and run.micro_batch_scale == 1.0:
        raise MemoryError("out of memory")
    if config.trouble == "always oom":
        raise MemoryError("out of memory")
    if config.trouble == "flaky" and not (run.checkpoints / "tried").exists():
        (run.checkpoints / "tried").touch()
        raise ConnectionError("the network is down")
    if config.trouble == "hang":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
        note(f"grandchild {child.pid}")
        time.sleep(600)


def nothing(config: NumbersConfig, *, seed: int, run) -> None:
    note("nothing")
""",
    "toytasks/__init__.py": "",
    "toytasks/stages.py": '''
from pathlib import Path

from tasks.key import Project
from tasks.stage import StageContext, stage
from tasks.store import Artifact
from toymodels.configs import NumbersConfig, TrainConfig

PROJECT = Project(Path(__file__).resolve().parents[1], ("toymodels", "toytasks"), ("toymodels",))
FAST = {"project": PROJECT, "retry_delays_s": [0.0, 0.0]}


@stage(kind="dataset", runs="toymodels.work:numbers", **FAST)
def numbers(config: NumbersConfig, *, seed: int, context: StageContext) -> Artifact:
    """Numbers."""
    return context.run(config, seed)


@stage(kind="policy", runs="toymodels.work:train", silence_s=60.0, **FAST)
def train(config: TrainConfig, data: Artifact, *, seed: int, context: StageContext) -> Artifact:
    return context.run(config, seed, data=data)


@stage(kind="dataset", runs="toymodels.work:nothing", **FAST)
def nothing(config: NumbersConfig, *, seed: int, context: StageContext) -> Artifact:
    return context.run(config, seed)


@stage(kind="report", runs="toymodels.report:summary", inline=True, **FAST)
def summary(config: NumbersConfig, models: dict[str, Artifact], *, context: StageContext) -> Artifact:
    return context.run(config, models=models)
''',
    "toytasks/flows.py": """
import sys

from prefect import flow

from toymodels.configs import NumbersConfig, TrainConfig
from toytasks import stages


@flow
def pipeline(seed: int = 0, numbers: NumbersConfig = NumbersConfig(), train: TrainConfig = TrainConfig()):
    data = stages.numbers(numbers, seed=seed)
    model = stages.train(train, data, seed=seed)
    report = stages.summary.named("all")(NumbersConfig(), {"model": model})
    return {"data": data, "model": model, "report": report}


if __name__ == "__main__":
    result = pipeline(seed=int(sys.argv[1]), train=TrainConfig(pause_s=float(sys.argv[2])))
    print(result["model"].digest)
""",
}


class Toy:
    """The project on disk, its imported modules, and the log of who really ran."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root = root
        self.home = home
        self.log = root / "ran.log"

    def write(self, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = self.root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def edit(self, name: str, old: str, new: str) -> None:
        text = (self.root / name).read_text()
        assert old in text
        (self.root / name).write_text(text.replace(old, new))

    def load(self, name: str) -> ModuleType:
        return importlib.import_module(name)

    def reload(self) -> None:
        """Forget the modules, as a new process would."""
        for name in [name for name in sys.modules if name.startswith("toy")]:
            del sys.modules[name]
        importlib.invalidate_caches()

    def ran(self) -> list[str]:
        """What really ran since the last look, without process ids and scales."""
        return [line.split()[0] for line in self.ran_lines()]

    def ran_lines(self) -> list[str]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return lines

    def history(self, key_prefix: str) -> list[tuple[int, dict]]:
        (path,) = (self.home / "store" / "history").glob(f"{key_prefix}-*.jsonl")
        entries = [json.loads(line) for line in path.read_text().splitlines()]
        return [(entry["step"], entry["metrics"]) for entry in entries]


@pytest.fixture
def toy(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    project = Toy(tmp_path / "project", home)
    project.write(FILES)
    monkeypatch.syspath_prepend(project.root)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # an edit within the same second must be seen
    monkeypatch.setenv("POSTTRAIN_TOY_LOG", str(project.log))
    monkeypatch.setenv("POSTTRAIN_THREADS", "1")
    yield project
    project.reload()


@pytest.fixture(scope="session", autouse=True)
def _no_zygote_left() -> Iterator[None]:
    yield
    process.close_zygote()
