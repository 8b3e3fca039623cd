"""A real SQLite store for every test, and what a reader of MLflow sees in it."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from tasks import recorder, tracking
from tasks.store import Artifact

History = dict[str, list[tuple[int, float]]]


class Mlflow:
    """What MLflow shows, read through its own client; and stages whose metrics are known."""

    policy = Artifact(kind="policy", digest="ab" * 32, size_bytes=12, n_files=2, meta={"parameters": 1000})
    base = Artifact(kind="policy", digest="ba" * 32, size_bytes=12, n_files=2)
    data = Artifact(kind="dataset", digest="cd" * 32, size_bytes=7, n_files=1, meta={"rows": 40})
    inputs: Mapping[str, Artifact] = {"base": base, "data": data}

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(tracking.tracking_uri())

    def runs(self) -> list[Run]:
        """All runs, in the order of their start."""
        experiment = self.client.get_experiment_by_name("posttrain")
        found = list(self.client.search_runs([experiment.experiment_id])) if experiment else []
        return sorted(found, key=lambda run: run.info.start_time)

    def run(self, name: str) -> Run:
        (run,) = [run for run in self.runs() if run.info.run_name == name]
        return self.client.get_run(run.info.run_id)

    def history(self, run: Run) -> History:
        return {name: [(p.step, p.value) for p in self.client.get_metric_history(run.info.run_id, name)] for name in run.data.metrics}

    def write(self, journal: Path, steps: range, mode: str = "w", offset: float = 0.0) -> None:
        """Report as a stage does, with the values of `whole`."""
        with journal.open(mode) as file:
            for step in steps:
                metrics = {"train/loss": step / 4 + offset, "train/kl_nats": step / 8}
                file.write(json.dumps({"step": step, "time": 1000.0 + step, "metrics": metrics}) + "\n")

    def whole(self, steps: range) -> History:
        return {"train/loss": [(step, step / 4) for step in steps], "train/kl_nats": [(step, step / 8) for step in steps]}

    def compute(self, label: str, journal: Path, key: str = "k1", **config: object) -> None:
        """A stage from its begin to its end."""
        stage = tracking.open_stage(label, label, key, config, self.inputs)
        stage.follow(journal)
        stage.finish(self.policy, "computed")


@pytest.fixture(scope="session")
def new_database(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Puts an empty database somewhere. MLflow takes seconds to make one: it is done once, then copied."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return lambda place: shutil.copy(path, place) and None


@pytest.fixture
def mlflow(home: Path, monkeypatch: pytest.MonkeyPatch, new_database: Callable[[Path], None]) -> Mlflow:
    """An MLflow store of this test's own."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(recorder, "FIRST_RETRY_S", 0.02)
    for name in ("DELIVER_AT_END_S", "DELIVER_WHEN_KILLED_S"):
        monkeypatch.setattr(tracking, name, 120.0)  # on a busy machine a record may take seconds
    (home / "mlflow").mkdir(parents=True)
    new_database(home / "mlflow" / "mlflow.db")
    return Mlflow()
