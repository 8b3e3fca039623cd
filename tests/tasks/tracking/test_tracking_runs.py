"""What MLflow shows of a pipeline, of its retries and of its cached stages."""

import json
import math
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tasks import provenance, recorder, registry, tracked, tracking
from tasks.plan import planning
from tasks.store import Artifact

ROOT = Path(__file__).resolve().parents[3]

# The tree of runs


def test_a_pipeline_is_one_run_with_a_child_a_stage(mlflow, tmp_path):
    mlflow.write(tmp_path / "journal.jsonl", range(1, 30))
    with tracking.pipeline("rlhf", {"sft": {"lr": 1e-4}, "seed": 3}, {"recipe": "tiny"}) as run:
        assert tracking.current_pipeline() is run
        mlflow.compute("sft", tmp_path / "journal.jsonl", lr=1e-4, seed=3)
        mlflow.compute("dpo", tmp_path / "journal.jsonl", key="k2")
    assert tracking.current_pipeline() is None
    parent, *children = mlflow.runs()
    assert (run.run_id, parent.info.status, parent.info.run_name) == (parent.info.run_id, "FINISHED", "rlhf")
    assert run.url == f"http://127.0.0.1:5000/#/experiments/{parent.info.experiment_id}/runs/{run.run_id}"
    assert parent.data.params == {"sft.lr": "0.0001", "seed": "3"}
    assert parent.data.tags["recipe"] == "tiny" and "mlflow.parentRunId" not in parent.data.tags
    assert [child.info.run_name for child in children] == ["sft", "dpo"]
    assert {child.data.tags["mlflow.parentRunId"] for child in children} == {parent.info.run_id}


def test_a_run_that_no_command_started_is_recorded_too(mlflow):
    with tracking.pipeline("rlhf", {"seed": 3}):
        assert registry.current_run() is not None
    assert [(run.recipe, run.status) for run in registry.runs()] == [("rlhf", "finished")]
    with registry.recording("mine", {}), tracking.pipeline("rlhf", {}):
        pass
    assert sorted(run.recipe for run in registry.runs()) == ["mine", "rlhf"]


def test_a_stage_shows_its_config_every_step_and_where_it_comes_from(mlflow, tmp_path):
    mlflow.write(tmp_path / "journal.jsonl", range(1, 30))
    with tracking.pipeline("rlhf", {}):
        mlflow.compute("sft", tmp_path / "journal.jsonl", lr=1e-4, seed=3)
    sft = mlflow.run("sft")
    assert sft.info.status == "FINISHED"
    assert sft.data.params == {"lr": "0.0001", "seed": "3"}
    assert mlflow.history(sft) == mlflow.whole(range(1, 30))
    expected = {"stage": "sft", "stage_key": "k1", "outcome": "computed", "cached": "false", "artifact_kind": "policy"}
    expected |= {"artifact_digest": mlflow.policy.digest, "input.data": mlflow.data.digest, "input.base": mlflow.base.digest}
    expected |= provenance.code_tags()
    assert expected.items() <= sft.data.tags.items()
    (point,) = [p for p in mlflow.client.get_metric_history(sft.info.run_id, "train/loss") if p.step == 7]
    assert point.timestamp == 1_007_000


def test_data_is_an_input_and_a_policy_is_a_model(mlflow, tmp_path):
    with tracking.pipeline("rlhf", {}):
        mlflow.compute("sft", tmp_path / "none")
        stage = tracking.open_stage("evaluate[sft]", "evaluate", "k2", {}, {"policy": mlflow.policy})
        stage.finish(Artifact(kind="report", digest="ef" * 32, size_bytes=1, n_files=1), "computed")
    sft, evaluated = mlflow.run("sft"), mlflow.run("evaluate[sft]")
    (dataset,) = sft.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == ("data", mlflow.data.digest[:32])
    assert json.loads(dataset.dataset.profile) == {"digest": mlflow.data.digest, "kind": "dataset", "rows": 40}
    (output,) = sft.outputs.model_outputs
    model = mlflow.client.get_logged_model(output.model_id)
    assert (model.name, model.model_type, model.status.value, model.source_run_id) == ("sft", "policy", "READY", sft.info.run_id)
    assert model.tags["artifact_digest"] == mlflow.policy.digest
    assert model.tags["artifact_uri"].endswith(f"/store/objects/ab/{mlflow.policy.digest}")
    assert [part.model_id for part in evaluated.inputs.model_inputs] == [output.model_id]
    assert evaluated.outputs.model_outputs == []


def test_a_policy_can_be_registered_and_promoted(mlflow, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking.tracking_uri())  # the registry looks a model up there
    with tracking.pipeline("rlhf", {}):
        mlflow.compute("sft", tmp_path / "none")
    (output,) = mlflow.run("sft").outputs.model_outputs
    mlflow.client.create_registered_model("posttrain")
    version = mlflow.client.create_model_version("posttrain", source=f"models:/{output.model_id}", model_id=output.model_id)
    mlflow.client.set_registered_model_alias("posttrain", "champion", version.version)
    assert mlflow.client.get_model_version_by_alias("posttrain", "champion").version == version.version


def test_reports_are_copied_into_the_run_and_weights_are_not(mlflow, tmp_path):
    for name in ("report.json", "page.html", "weights.safetensors", "config.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "large.json").write_bytes(b" " * ((1 << 20) + 1))
    with tracking.pipeline("rlhf", {}):
        for label, artifact in {"sft": mlflow.policy, "curate": mlflow.data}.items():
            tracking.open_stage(label, label, "k", {}, {}).finish(artifact, "computed", folder=tmp_path)
    shown = {name: [file.path for file in mlflow.client.list_artifacts(mlflow.run(name).info.run_id)] for name in ("sft", "curate")}
    assert shown == {"sft": ["report.json"], "curate": ["config.json", "page.html", "report.json"]}


def test_the_last_word_of_a_run_is_a_table(mlflow, home):
    rows = [{"policy": "sft", "accuracy": 0.5}, {"policy": "dpo", "accuracy": 0.75, "kl": 1.5}]
    with tracking.pipeline("rlhf", {}) as run:
        run.table(rows, "| policy |", key="comparison")
        run.table(rows, "| policy |", key="comparison")
    parent = mlflow.run("rlhf")
    assert json.loads(parent.data.tags["mlflow.loggedArtifacts"]) == [{"path": "comparison.json", "type": "table"}]
    folder = home / "mlflow" / "artifacts" / parent.info.run_id / "artifacts"
    table = json.loads((folder / "comparison.json").read_text())
    assert table == {"columns": ["policy", "accuracy", "kl"], "data": [["sft", 0.5, None], ["dpo", 0.75, 1.5]]}
    assert (folder / "comparison.md").read_text() == "| policy |"


def test_a_pipeline_inside_another_is_its_child(mlflow, tmp_path):
    with tracking.pipeline("outer", {}), tracking.pipeline("inner", {}):
        mlflow.compute("sft", tmp_path / "none")
    outer, inner, sft = mlflow.runs()
    assert [inner.data.tags["mlflow.parentRunId"], sft.data.tags["mlflow.parentRunId"]] == [outer.info.run_id, inner.info.run_id]


def test_a_stage_outside_of_any_pipeline_has_a_run_of_its_own(mlflow, tmp_path):
    mlflow.write(tmp_path / "journal.jsonl", range(3))
    mlflow.compute("sft", tmp_path / "journal.jsonl")
    mlflow.compute("sft", tmp_path / "journal.jsonl")
    (sft,) = mlflow.runs()
    assert sft.info.status == "FINISHED" and "mlflow.parentRunId" not in sft.data.tags
    assert mlflow.history(mlflow.client.get_run(sft.info.run_id)) == mlflow.whole(range(3))


def test_a_plan_leaves_no_trace(mlflow):
    with planning(), tracking.pipeline("rlhf", {}) as run:
        run.table([{"a": 1}], "| a |", "comparison")
        assert (run.run_id, run.url, tracking.current_pipeline()) == (None, None, None)
    assert mlflow.runs() == []


# Cached stages


def test_a_cached_stage_is_marked_and_has_the_whole_history(mlflow, tmp_path):
    mlflow.write(tmp_path / "journal.jsonl", range(1200))
    with tracking.pipeline("first", {}):
        mlflow.compute("sft", tmp_path / "journal.jsonl", lr=0.1)
    source = mlflow.run("sft")
    with tracking.pipeline("second", {}):
        tracking.cached("sft", "sft", "k1", mlflow.policy, {"lr": 0.1}, mlflow.inputs, tmp_path / "journal.jsonl")
    copy = mlflow.client.get_run(mlflow.runs()[-1].info.run_id)
    assert (copy.data.tags["cached"], copy.data.tags["outcome"], copy.info.status) == ("true", "hit", "FINISHED")
    assert copy.data.tags["cached_from"] == source.info.run_id
    assert copy.data.params == source.data.params
    assert mlflow.history(copy) == mlflow.history(source) == mlflow.whole(range(1200))
    assert [o.model_id for o in copy.outputs.model_outputs] == [o.model_id for o in source.outputs.model_outputs]


def test_a_cached_stage_without_a_kept_history_is_still_shown(mlflow, tmp_path):
    with tracking.pipeline("rlhf", {}):
        tracking.cached("curate", "curate", "k", mlflow.data, {}, {}, tmp_path / "none.jsonl")
    assert mlflow.run("curate").data.tags["cached"] == "true" and mlflow.run("curate").data.metrics == {}


# Retries and resumption


def test_a_retry_goes_on_in_the_same_run_without_points_twice(mlflow, tmp_path):
    journal = tmp_path / "journal.jsonl"
    with tracking.pipeline("rlhf", {}) as run:
        mlflow.write(journal, range(1, 36))
        first = tracking.open_stage("sft", "sft", "k1", {"lr": 0.1}, mlflow.inputs)
        first.follow(journal)
        first.fail(RuntimeError("lost process"))
        assert run.session.recorder.wait(60)
        failed = mlflow.run("sft")
        assert (failed.info.status, failed.data.tags["error"]) == ("FAILED", "RuntimeError: lost process")
        # The stage resumes from step 30; its clock, hence the time of its points, is another one.
        again = tracking.open_stage("sft", "sft", "k1", {"lr": 0.1}, mlflow.inputs)
        mlflow.write(journal, range(1, 31))
        again.follow(journal)
        mlflow.write(journal, range(31, 61), mode="a", offset=0.0)
        again.finish(mlflow.policy, "resumed")
    sft = mlflow.run("sft")
    assert sft.info.run_id == failed.info.run_id and sft.info.status == "FINISHED"
    assert mlflow.history(sft) == mlflow.whole(range(1, 61))
    assert sft.data.tags["outcome"] == "resumed"
    assert len(sft.inputs.model_inputs) == len(sft.outputs.model_outputs) == len(sft.inputs.dataset_inputs) == 1


def test_a_retry_with_another_setting_that_changes_no_result_goes_on(mlflow, tmp_path):
    """Such a setting is not in the key; MLflow never changes a param, so the first value stays."""
    mlflow.write(tmp_path / "journal.jsonl", range(1, 5))
    with tracking.pipeline("rlhf", {}):
        tracking.open_stage("sft", "sft", "k1", {"log_every": 1}, {}).fail(RuntimeError("lost process"))
        stage = tracking.open_stage("sft", "sft", "k1", {"log_every": 5, "threads": 2}, mlflow.inputs)
        stage.finish(mlflow.policy, "computed", journal=tmp_path / "journal.jsonl")
    sft = mlflow.run("sft")
    assert sft.data.params == {"log_every": "1", "threads": "2"}
    assert len(sft.inputs.dataset_inputs) == 1 and mlflow.history(sft) == mlflow.whole(range(1, 5))


def test_points_already_sent_are_not_sent_again_by_another_process(mlflow, tmp_path, monkeypatch):
    """The same Prefect flow run, retried in a new process: nothing is known but what MLflow has."""
    flow_run = SimpleNamespace(id="f-1", name="brave-owl", deployment_id=None, run_count=1, state=None, parent_task_run_id="t-1")
    monkeypatch.setattr(provenance, "flow_run", lambda: flow_run)
    monkeypatch.setattr(provenance, "flow_tags", lambda: {"prefect.flow_run_id": "f-1"})
    monkeypatch.setattr(tracked, "_link_from_prefect", lambda run, run_id: None)
    journal = tmp_path / "journal.jsonl"
    for last in (36, 61):
        mlflow.write(journal, range(1, last), offset=0.0)
        # A point that differs in value and time must not appear beside the one that is there.
        mlflow.write(journal, range(20, 21), mode="a", offset=99.0)
        with tracking.pipeline("rlhf", {"seed": 1}):
            mlflow.compute("sft", journal)
    assert len(mlflow.runs()) == 2
    assert mlflow.history(mlflow.run("sft")) == mlflow.whole(range(1, 61))


@pytest.mark.parametrize("rewound_to", [0, 10, 20])
def test_a_rewound_journal_leaves_the_history_of_an_uninterrupted_run(mlflow, tmp_path, rewound_to, monkeypatch):
    monkeypatch.setattr(recorder, "POLL_S", 0.05)
    journal, other = tmp_path / "journal.jsonl", tmp_path / "other.jsonl"
    with tracking.pipeline("killed", {}):
        stage = tracking.open_stage("sft", "sft", "k1", {}, {})
        stage.follow(journal)
        mlflow.write(journal, range(1, 26))
        assert seen_in(mlflow, 25)
        mlflow.write(other, range(1, rewound_to + 1))
        other.replace(journal)
        mlflow.write(journal, range(rewound_to + 1, 41), mode="a")
        stage.finish(mlflow.policy, "resumed")
    assert mlflow.history(mlflow.run("sft")) == mlflow.whole(range(1, 41))


def seen_in(mlflow, step: int) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if any((step, step / 4) in mlflow.history(run).get("train/loss", []) for run in mlflow.runs()):
            return True
        time.sleep(0.05)
    return False


# Values


def test_a_loss_that_diverged_is_shown_as_it_was(mlflow, tmp_path):
    values = [math.nan, math.inf, -math.inf]
    entries = [{"step": step, "time": 5.0, "metrics": {"train/loss": value, "odd name?": 1}} for step, value in enumerate(values)]
    (tmp_path / "journal.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    with tracking.pipeline("rlhf", {}):
        mlflow.compute("sft", tmp_path / "journal.jsonl")
    found = mlflow.history(mlflow.run("sft"))
    assert [step for step, _ in found["train/loss"]] == [0, 1, 2] and math.isnan(found["train/loss"][0][1])
    assert len(found["odd name_"]) == 3


def test_a_config_of_many_and_long_values_is_kept(mlflow, tmp_path):
    with tracking.pipeline("rlhf", {f"p{i}": "x" * 7000 for i in range(250)}):
        pass
    assert {len(value) for value in mlflow.run("rlhf").data.params.values()} == {6000}
    assert len(mlflow.run("rlhf").data.params) == 250


# A brand-new store


def run_quietly(home: Path, script: str) -> list[subprocess.Popen[str]]:
    """Two processes that begin at the same time, on a store that is not there yet."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")} | {"POSTTRAIN_HOME": str(home)}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) for _ in range(2)]


def test_two_first_runs_at_once_share_one_new_store_and_print_nothing(mlflow, tmp_path, monkeypatch):
    script = """
        from tasks import tracking
        from tasks.store import Artifact
        data = Artifact(kind="policy", digest="ab" * 32, size_bytes=1, n_files=1)
        with tracking.pipeline("rlhf", {"seed": 1}) as run:
            tracking.open_stage("sft", "sft", "k1", {}, {"base": data}).finish(data, "computed")
            run.table([{"a": 1}], "| a |", "comparison")
    """
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "new"))
    processes = run_quietly(tmp_path / "new", script)
    assert [process.communicate(timeout=120) for process in processes] == [("", "")] * 2
    assert [run.info.status for run in mlflow.runs()] == ["FINISHED"] * 4
    assert len(mlflow.client.search_logged_models([mlflow.runs()[0].info.experiment_id])) == 1


# Prefect


def test_a_retried_flow_run_is_one_run_and_both_sides_link_to_each_other(mlflow, prefect_api):
    from prefect import flow, task
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    attempts = []

    @task
    def sft():
        tracking.open_stage("sft", "sft", "k1", {}, {}).finish(mlflow.policy, "computed")

    @flow(retries=1)
    def tiny():
        attempts.append(1)
        with tracking.pipeline("tiny", {"seed": 1}) as run:
            sft()
            run.table([{"policy": "sft", "accuracy": 0.5}], "| policy |", key="comparison_table")
            if len(attempts) == 1:
                raise RuntimeError("the machine next door is on fire")
        return run.run_id

    run_id = tiny()
    parent, child = mlflow.runs()
    assert (len(attempts), run_id, parent.info.status, child.info.status) == (2, parent.info.run_id, "FINISHED", "FINISHED")
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(parent.data.tags["prefect.flow_run_id"])
        task_run = client.read_task_run(child.data.tags["prefect.task_run_id"])
        own = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run.id])))
    artifacts = {artifact.key: artifact.data for artifact in own}
    assert parent.data.tags["prefect.flow_run_name"] == parent.info.run_name == flow_run.name
    assert parent.data.tags["pipeline"] == "tiny"
    assert flow_run.labels["mlflow.run_id"] == run_id
    assert task_run.flow_run_id == flow_run.id
    assert child.data.tags["prefect.flow_run_id"] == str(flow_run.id)
    assert run_id in artifacts["mlflow-run"] and "accuracy" in artifacts["comparison-table"]
