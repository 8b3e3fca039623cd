"""How runs end: well, badly, by a kill, and while MLflow is away."""

import logging
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, TEMPORARILY_UNAVAILABLE

from tasks import tracked, tracking

ROOT = Path(__file__).resolve().parents[3]

# How runs end


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("bad lr"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(143), "KILLED"),
        (type("TerminationSignal", (BaseException,), {})(), "KILLED"),
        (type("CancelledRun", (Exception,), {})(), "KILLED"),
        (type("Pause", (BaseException,), {})(), "SCHEDULED"),
    ],
)
def test_how_a_flow_ended_is_how_its_run_ended(mlflow, error, status):
    assert tracked.status_of(error) == status
    with pytest.raises(type(error)), tracking.pipeline("rlhf", {}):
        tracking.open_stage("sft", "sft", "k1", {}, {})
        raise error
    assert mlflow.run("rlhf").info.status == status
    assert mlflow.run("sft").info.status == ("KILLED" if status == "KILLED" else "FAILED")


def start_pipelines(count: int) -> list[subprocess.Popen[str]]:
    """Processes that are in the middle of a stage."""
    script = """
        import time
        from tasks import tracking
        with tracking.pipeline("rlhf", {}) as run:
            tracking.open_stage("sft", "sft", "k1", {}, {})
            assert run.session.recorder.wait(60)
            print("running", flush=True)
            time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(count)]
    assert [process.stdout.readline() for process in processes if process.stdout] == ["running\n"] * count
    return processes


def test_runs_of_a_killed_process_become_killed_and_those_of_a_living_one_never(mlflow):
    killed, alive = start_pipelines(2)
    try:
        assert tracking.sweep() == []
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert sorted(tracking.sweep()) == ["rlhf", "sft"]
        assert sorted(run.info.status for run in mlflow.runs()) == ["KILLED", "KILLED", "RUNNING", "RUNNING"]
        assert tracking.sweep() == []
    finally:
        for process in (killed, alive):
            process.kill()
            process.communicate()
    with tracking.pipeline("next", {}):
        pass
    assert sorted(run.info.status for run in mlflow.runs()) == ["FINISHED", *["KILLED"] * 4]


def test_a_run_of_another_machine_is_left_alone(mlflow):
    with tracking.pipeline("rlhf", {}) as run:
        pass
    assert run.run_id is not None
    mlflow.client.set_tag(run.run_id, "owner", "elsewhere-1-0")
    mlflow.client.update_run(run.run_id, status="RUNNING")
    assert tracking.sweep() == []
    assert mlflow.run("rlhf").info.status == "RUNNING"


# When MLflow is away


class Outage:
    """MLflow as it is seen while its server is away: every call fails the way its HTTP client fails."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = True
        connect = tracking.MlflowStore._client

        def client_or_error(store: tracking.MlflowStore) -> MlflowClient:
            if self.on:
                            raise MlflowException("API request to /api failed with exception: connection refused")
            return connect(store)

        monkeypatch.setattr(tracking.MlflowStore, "_client", client_or_error)


def test_an_outage_while_a_stage_runs_leaves_no_gap(mlflow, tmp_path, monkeypatch, caplog):
    outage = Outage(monkeypatch)
    mlflow.write(tmp_path / "journal.jsonl", range(1, 30))
    began = time.monotonic()
    with tracking.pipeline("rlhf", {}) as run:
        mlflow.compute("sft", tmp_path / "journal.jsonl")
        assert time.monotonic() - began < 60 and run.run_id is None and run.url is None
        time.sleep(0.3)
        outage.on = False
    assert mlflow.history(mlflow.run("sft")) == mlflow.whole(range(1, 30))
    assert {run.info.status for run in mlflow.runs()} == {"FINISHED"}
    assert caplog.text.count("cannot be reached") == 1


def test_what_an_outage_kept_back_is_sent_by_the_next_run(mlflow, home, tmp_path, monkeypatch, caplog):
    outage = Outage(monkeypatch)
    monkeypatch.setattr(tracking, "DELIVER_AT_END_S", 0.3)
    mlflow.write(tmp_path / "journal.jsonl", range(1, 30))
    with tracking.pipeline("away", {"seed": 1}) as run:
        mlflow.compute("sft", tmp_path / "journal.jsonl", lr=0.1)
        run.table([{"a": 1}], "| a |", "comparison")
    assert "are sent by the next run" in caplog.text
    assert len(list(home.glob("mlflow/outbox/*/*.jsonl"))) == 1
    outage.on = False
    monkeypatch.setattr(tracking, "DELIVER_AT_END_S", 120.0)
    with tracking.pipeline("back", {}):
        pass
    assert list(home.glob("mlflow/outbox/*/*.jsonl")) == []
    away, sft = mlflow.run("away"), mlflow.run("sft")
    assert (away.info.status, sft.info.status, sft.data.params) == ("FINISHED", "FINISHED", {"lr": "0.1"})
    assert sft.data.tags["mlflow.parentRunId"] == away.info.run_id
    assert mlflow.history(sft) == mlflow.whole(range(1, 30))


def test_a_locked_database_delays_no_stage_and_loses_nothing(mlflow, home, tmp_path):
    mlflow.write(tmp_path / "journal.jsonl", range(1, 30))
    with tracking.pipeline("rlhf", {}) as run:
        assert run.session.recorder.wait(60)
        holder = sqlite3.connect(home / "mlflow" / "mlflow.db", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN EXCLUSIVE")
        threading.Timer(4.0, lambda: (holder.execute("COMMIT"), holder.close())).start()
        began = time.monotonic()
        mlflow.compute("sft", tmp_path / "journal.jsonl")
        assert time.monotonic() - began < 2
    assert mlflow.history(mlflow.run("sft")) == mlflow.whole(range(1, 30))


def test_an_answer_that_the_database_is_busy_is_tried_again(mlflow, tmp_path, monkeypatch):
    """More often than any other error: MLflow answers all the time that something else is written."""
    log_batch, failures = MlflowClient.log_batch, iter(range(2 * tracking.TRIES_WHILE_MLFLOW_ANSWERS))

    def busy(self, *args, **kwargs):
        if next(failures, None) is not None:
            raise MlflowException("database is locked", error_code=TEMPORARILY_UNAVAILABLE)
        return log_batch(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "log_batch", busy)
    mlflow.write(tmp_path / "journal.jsonl", range(1, 30))
    with tracking.pipeline("rlhf", {}):
        mlflow.compute("sft", tmp_path / "journal.jsonl")
    assert mlflow.history(mlflow.run("sft")) == mlflow.whole(range(1, 30))


def test_what_mlflow_refuses_for_good_is_not_tried_again(mlflow, tmp_path, monkeypatch):
    tries = []

    def refuse(self, run_id, *args, **kwargs):
        tries.append(run_id)
        raise MlflowException("no such thing", error_code=INVALID_PARAMETER_VALUE)

    monkeypatch.setattr(MlflowClient, "log_inputs", refuse)
    with tracking.pipeline("rlhf", {}):
        mlflow.compute("sft", tmp_path / "none")
    assert len(tries) == 1


def test_a_record_that_breaks_the_server_does_not_block_the_others(mlflow, tmp_path, monkeypatch, caplog):
    def broken(self, *args, **kwargs):
        raise MlflowException("internal error")

    monkeypatch.setattr(MlflowClient, "log_inputs", broken)
    with tracking.pipeline("rlhf", {}):
        mlflow.compute("sft", tmp_path / "none")
    assert "Not recorded in MLflow: internal error" in caplog.text
    assert (mlflow.run("rlhf").info.status, mlflow.run("sft").info.status) == ("FINISHED", "FINISHED")


def test_a_server_that_nobody_runs_costs_the_run_nothing(mlflow, home, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setattr(tracking, "DELIVER_AT_END_S", 0.5)
    with tracking.pipeline("rlhf", {}) as run:
        mlflow.compute("sft", tmp_path / "none")
    assert run.url is None and tracking.ui_url() == "http://127.0.0.1:9"
    assert len(list(home.glob("mlflow/outbox/*/*.jsonl"))) == 1
    assert max(entry.levelno for entry in caplog.records) == logging.WARNING
    for folder in home.glob("mlflow/owners/*"):
        (folder / "gone-1-0").touch()  # so that the sweep asks MLflow
    assert tracking.sweep() == []
    assert "were not looked for" in caplog.text


def test_a_run_that_the_user_deleted_meanwhile_is_let_go(mlflow, tmp_path, caplog):
    with tracking.pipeline("rlhf", {}) as run:
        stage = tracking.open_stage("sft", "sft", "k1", {}, {})
        assert run.session.recorder.wait(60)
        mlflow.client.delete_run(mlflow.run("sft").info.run_id)
        mlflow.write(tmp_path / "journal.jsonl", range(3))
        stage.follow(tmp_path / "journal.jsonl")
        stage.finish(mlflow.policy, "computed")
    assert "Not recorded in MLflow" in caplog.text
    assert [run.info.status for run in mlflow.runs()] == ["FINISHED"]


def test_a_deleted_experiment_comes_back(mlflow):
    experiment = mlflow.client.create_experiment("posttrain")
    mlflow.client.delete_experiment(experiment)
    with tracking.pipeline("rlhf", {}):
        pass
    assert mlflow.client.get_experiment(experiment).lifecycle_stage == "active"
    assert len(mlflow.client.search_runs([experiment], run_view_type=ViewType.ALL)) == 1


def test_an_outbox_of_another_version_is_set_aside(mlflow, home, caplog):
    with tracking.pipeline("rlhf", {}) as run:
        folder = run.session.store.outbox
    folder.mkdir(parents=True)
    (folder / "old.jsonl").write_text('{"record": "dance"}\n')
    with tracking.pipeline("rlhf", {}):
        pass
    assert [path.name for path in folder.iterdir()] == ["old.unreadable"]
    assert len(mlflow.runs()) == 2


