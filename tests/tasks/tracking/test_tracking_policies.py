"""A run for each policy: MLflow's search says what the table says."""

import json
from typing import Any

import pytest

from data.measures import Measure, Suite
from models.comparison import Findings, compared
from models.configs.evaluation import ComparisonConfig
from tasks import registry, tracking
from tasks.home import home as home_folder
from tasks.key import save_document
from tasks.registry import record_stage
from tasks.report import publish_report
from tasks.store import Store

NAMES = {"base": 0.1, "sft": 0.4, "dpo": 0.3, "ppo": 0.6}


def rows(correct: float, n: int = 20) -> list[dict[str, Any]]:
    known = {"n_tokens": 4, "finished": True}
    right = [i < correct * n for i in range(n)]
    answers = [{"text": f"t{i}", "kl_nats": correct, "score": float(right[i]), "correct": right[i], **known} for i in range(n)]
    return [{"id": f"p{i}", "prompt": "q", "sampled": [answer]} for i, answer in enumerate(answers)]


def record(live: Any, label: str, stage: str, kind: str, content: dict[str, Any], inputs: dict[str, Any]) -> dict[str, str]:
    """A stage as if it had run; its reference in key documents."""
    store = Store(home_folder() / "store")
    staging = store.new_staging()
    for name, value in {"note.json": {"label": label}, **content}.items():
        (staging / name).write_text(json.dumps(value))
    artifact = store.put(staging, kind)
    key = f"{stage}-{artifact.digest[:32]}"
    save_document(store.root / "keydocs", key, {"stage": stage, "config": {"beta": label}, "inputs": inputs, "seed": 0})
    (store.root / "costs" / f"{key}.json").write_text(
        json.dumps({"seconds": 2.0, "generated_tokens": 30, "peak_bytes": 2**30, "device_peak_bytes": 0})
    )
    record_stage(live, label, key, artifact, "computed", 9.0)
    return {"kind": kind, "digest": artifact.digest}


@pytest.fixture
def published(mlflow: Any) -> dict[str, Any]:
    """The content of a comparison that was published."""
    answers = {name: rows(share) for name, share in NAMES.items()}
    measures = {name: [Measure("accuracy/task=a b", share, 0.0, 1.0)] for name, share in NAMES.items()}
    suites = {name: {"mc": Suite("mc", "multiple_choice", own)} for name, own in measures.items()}
    content = compared(ComparisonConfig(resamples=200), answers, Findings(suites), seed=0)
    with tracking.pipeline("rlhf", {}):
        live = registry.current_run()
        data = record(live, "curate", "curate", "dataset", {}, {})
        for name, own in answers.items():
            policy = record(live, name, "sft", "policy", {}, {"data": data})
            record(live, f"evaluate[{name}]", "evaluate", "report", {"evaluation.json": {"rows": own}}, {"policy": policy, "data": data})
        assert publish_report(content) == registry.report_path("rlhf-1")
    return content


def test_search_runs_gives_the_order_and_the_numbers_of_the_table(mlflow: Any, published: dict[str, Any]):
    experiment = mlflow.client.get_experiment_by_name("posttrain").experiment_id
    found = mlflow.client.search_runs([experiment], "tags.kind = 'policy'", order_by=["metrics.`eval/accuracy` DESC"])
    table = sorted(published["rows"], key=lambda row: -row["accuracy"]["mean"])
    assert [run.data.tags["policy"] for run in found] == [row["policy"] for row in table] == ["ppo", "sft", "dpo", "base"]
    for run, row in zip(found, table, strict=True):
        metrics = run.data.metrics
        assert [metrics[f"eval/accuracy{end}"] for end in ("", "_low", "_high")] == list(row["accuracy"].values())
        assert metrics["eval/kl_nats"] == row["kl_nats"] and metrics["suite/mc/accuracy/task:a b"] == NAMES[row["policy"]]
        assert metrics.get("eval/win_rate") == (row["win_rate"] or {}).get("mean")
        assert (metrics["cost/seconds"], metrics["cost/lineage_seconds"], metrics["cost/tokens"], metrics["cost/peak_gib"]) == (2, 4, 30, 1)


def test_a_policy_says_where_it_comes_from(mlflow: Any, published: dict[str, Any]):
    run = mlflow.run("ppo")
    (parent,) = [run for run in mlflow.runs() if run.data.tags["kind"] == "pipeline"]
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id and run.info.status == "FINISHED"
    artifacts = registry.find("rlhf-1").artifacts()
    assert run.data.tags["artifact_digest"] == artifacts["ppo"].digest and run.data.tags["data_digest"] == artifacts["curate"].digest
    assert [one.dataset.digest for one in run.inputs.dataset_inputs] == [artifacts["curate"].digest[:32]]
    assert len(run.inputs.model_inputs) == 1


def test_the_page_is_a_file_of_the_flows_run(mlflow: Any, published: dict[str, Any]):
    (parent,) = [run for run in mlflow.runs() if run.data.tags["kind"] == "pipeline"]
    assert "report.html" in [one.path for one in mlflow.client.list_artifacts(parent.info.run_id)]
    page = registry.report_path("rlhf-1").read_text()
    assert "ppo" in page and 'id="costs"' in page
    registry.remove("rlhf-1")
    assert not registry.report_path("rlhf-1").parent.exists()


def test_outside_of_a_run_there_is_no_page(home: Any):
    assert publish_report({"rows": []}) is None
