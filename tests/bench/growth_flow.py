"""A flow of three stages that do nothing but report, on a real Prefect and a real MLflow: what a flow run leaves in their databases."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STEPS, METRICS, STAGES = 50, 8, 3

# As a project of its own: a stage's code is found by its module, and this one's would be the whole of tests/.
FILES = {
    "growthwork.py": f'''
"""The work of a stage that only reports."""

from pydantic import BaseModel


class ReportConfig(BaseModel):
    number: int = 0


def report(config: ReportConfig, *, seed: int, run) -> dict:
    for step in range({STEPS}):
        run.report({{f"train/metric_{{i}}": float(config.number + step + i) for i in range({METRICS})}}, step)
    (run.out / "report.json").write_text(str(config.number))
    return {{"number": config.number}}
''',
    "growthstages.py": '''
"""Its task."""

from pathlib import Path

from growthwork import ReportConfig
from tasks.key import Project
from tasks.stage import StageContext, stage
from tasks.store import Artifact

PROJECT = Project(Path(__file__).resolve().parent, ("growthwork", "growthstages"), ("growthwork",))


@stage(kind="report", runs="growthwork:report", inline=True, project=PROJECT)
def report(config: ReportConfig, *, seed: int, context: StageContext) -> Artifact:
    return context.run(config, seed)
''',
}


@contextmanager
def started() -> Iterator[None]:
    """An output folder and the project's modules; flow runs without heartbeats, each of which would take a second."""
    from tasks.home import configure_environment

    os.environ["POSTTRAIN_HOME"] = tempfile.mkdtemp()
    for name in ("PREFECT_HOME", "PREFECT_API_URL", "MLFLOW_TRACKING_URI"):
        os.environ.pop(name, None)
    configure_environment()
    folder = Path(tempfile.mkdtemp())
    for name, text in FILES.items():
        (folder / name).write_text(text)
    sys.path.insert(0, str(folder))
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield


def three_stages(number: int) -> None:
    """One flow run, tracked in MLflow; its stages are computed."""
    from prefect import flow

    from tasks import tracking

    stages: Any = __import__("growthstages")
    work: Any = __import__("growthwork")

    @flow(name="growth")
    def growth(number: int) -> None:
        with tracking.pipeline("growth", params={"number": number}):
            for stage in range(STAGES):
                stages.report.named(str(stage))(work.ReportConfig(number=STAGES * number + stage), seed=0)

    growth(number)


def say_lines(count: int) -> None:
    """One flow run with so many lines in its log."""
    from prefect import flow
    from prefect.logging import get_run_logger

    @flow(name="talk")
    def talk() -> None:
        for i in range(count):
            get_run_logger().info("sft: update %d of 1000, loss 1.234, 310 tokens/s, 12 minutes left", i)

    talk()
