"""The flow `curation`, whole, on a local file: what it leaves in MLflow and in Prefect."""

import json

import pytest
from mlflow import MlflowClient
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

from flows.curation import CurationConfig, curation
from tasks import tracking
from tasks.home import home as output_folder
from tasks.process import close_zygote
from tasks.store import Store


@pytest.fixture
def config(tmp_path):
    rows = [{"prompt": f"question {i}", "completion": f"<b>answer {i}</b>"} for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "file", "name": str(tmp_path / "rows.jsonl"), "license": "MIT <i>"}
    tables = {"demonstrations": 20, "prompts": 0, "test_prompts": 10}
    yield CurationConfig.model_validate({"base_model": {"kind": "scratch"}, "curate": {"sources": [source], **tables}})
    close_zygote()


def test_the_report_is_in_mlflow_and_the_card_with_the_way_to_it_in_prefect(home, prefect_api, config):
    data = curation(config)
    folder = Store(output_folder() / "store").path(data)
    assert {path.name for path in folder.iterdir()} == {
        "card.md",
        "demonstrations.parquet",
        "rejected.jsonl",
        "report.html",
        "report.json",
        "test_prompts.parquet",
    }
    client = MlflowClient(tracking.tracking_uri())
    experiment = client.get_experiment_by_name("posttrain")
    assert experiment is not None
    newest_first = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    runs = {run.data.tags["kind"] + run.data.tags.get("stage", ""): run for run in reversed(newest_first)}  # other tests share the store
    in_stage = {file.path for file in client.list_artifacts(runs["stagecurate"].info.run_id)}
    assert {"report.html", "report.json", "card.md"} <= in_stage
    assert "curation.md" in {file.path for file in client.list_artifacts(runs["pipeline"].info.run_id)}
    with get_client(sync_client=True) as prefect:
        pages = prefect.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["curation"])))
    page = max(pages, key=lambda page: page.created)  # other tests' flows show the cards of their data
    assert page.type == "markdown" and isinstance(page.data, str)
    assert page.data.startswith("# Data card") and "| both | MIT &lt;i&gt; | 40 |" in page.data
    assert f"`{folder / 'report.html'}`" in page.data and "report.html` of the stage `curate`" in page.data
