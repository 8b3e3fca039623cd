"""A recipe whose stages take milliseconds, in a project of its own: what the tests of the command line run, stop and collect; a browser."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]

FILES = {
    "minimodels/__init__.py": "",
    "minimodels/work.py": '''
from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from models.run import Stopped


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CurateConfig(Strict):
    rows: int = Field(3, ge=1, description="Rows to make.")


class TrainConfig(Strict):
    steps: int = Field(4, ge=1, description="Steps to take.")
    method: Literal["plus", "minus"] = Field("plus", description="What a step does.")
    pause_s: float = Field(0.0, description="Seconds a step.", json_schema_extra={"cache": False})
    trouble: str = Field("", description="What goes wrong.", json_schema_extra={"cache": False})


class MiniConfig(Strict):
    seed: int = Field(0, description="Seed of everything.")
    curate: CurateConfig = CurateConfig()
    train: TrainConfig = TrainConfig()


def curate(config: CurateConfig, *, seed: int, run) -> dict:
    (run.out / "rows.json").write_text(json.dumps([seed] * config.rows))
    return {"rows": config.rows}


def train(config: TrainConfig, *, data: Path, seed: int, run) -> dict:
    if config.trouble == "config":
        raise ValueError("train.trouble is 'config': leave it out")
    saved = run.checkpoints / "step"
    first = int(saved.read_text()) if saved.exists() else 0
    if first:
        run.rewind(first)
    for step in range(first + 1, config.steps + 1):
        time.sleep(config.pause_s)
        run.report({"train/loss": 1 / step}, step)
        run.progress(step, config.steps, tokens_per_s=1000.0)
        saved.write_text(str(step))
        if run.stopping:
            raise Stopped
    (run.out / "model.json").write_text(json.dumps([config.method, config.steps, seed]))
    return {}


def compare(config: CurateConfig, *, policy: Path, run) -> dict:
    accuracy = {"mean": 0.5, "low": 0.25, "high": 0.75}
    (run.out / "comparison.json").write_text(json.dumps({"rows": [{"policy": "base [tiny]", "accuracy": accuracy, "kl_nats": None}]}))
    return {}
''',
    "minitasks.py": '''
from pathlib import Path

from tasks.key import Project
from tasks.stage import StageContext, stage
from tasks.store import Artifact
from minimodels.work import CurateConfig, TrainConfig

PROJECT = Project(Path(__file__).resolve().parent, ("minimodels", "minitasks"), ("minimodels",))


@stage(kind="dataset", runs="minimodels.work:curate", project=PROJECT)
def curate(config: CurateConfig, *, seed: int, context: StageContext) -> Artifact:
    return context.run(config, seed)


@stage(kind="model", runs="minimodels.work:train", project=PROJECT, retries=0)
def train(config: TrainConfig, data: Artifact, *, seed: int, context: StageContext) -> Artifact:
    return context.run(config, seed, data=data)


@stage(kind="report", runs="minimodels.work:compare", inline=True, project=PROJECT)
def compare(config: CurateConfig, policy: Artifact, *, context: StageContext) -> Artifact:
    return context.run(config, policy=policy)
''',
    "mini.py": '''
from prefect import flow

import minitasks
from minimodels.work import MiniConfig
from tasks.registry import recording


@flow
def mini(config: MiniConfig = MiniConfig()):
    with recording("mini", config, config.seed):
        data = minitasks.curate(config.curate, seed=config.seed)
        policy = minitasks.train(config.train, data, seed=config.seed)
        return minitasks.compare(config.curate, policy)
''',
    "mini.yaml": """
flow: mini:mini
description: The smallest recipe
config: {train: {steps: 2}}
""",
}


class Mini:
    """The project on disk and an output folder of its own."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.home = root / "home"
        self.recipe = str(root / "mini.yaml")
        for name, text in FILES.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)

    @property
    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        mine = {"POSTTRAIN_HOME": str(self.home), "PYTHONPATH": str(self.root), "POSTTRAIN_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1"}
        return {**kept, **mine}

    cwd = ROOT

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "flows.cli", *arguments]

    def start(self, *arguments: str, environment: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        """`posttrain ARGUMENTS` as a process."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.cwd,
            env={**self.environment, **(environment or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def posttrain(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """Output and error output of `posttrain ARGUMENTS`, which ends with the exit code `code`."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
        return out, err


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    """Shared by the tests of a module: each starts servers and processes, which takes seconds."""
    return Mini(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium of the system; nothing is downloaded."""
    found = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no chromium on PATH: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()
