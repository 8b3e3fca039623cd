"""What the store can prove of a report: a name is no proof, and neither is a changed document."""

import json
import os

import pytest

from tasks import registry
from tasks.home import home as output_folder
from tasks.lineage import Unproven, ancestry, proven
from tasks.registry import RunRecord
from tasks.store import Store


@pytest.fixture
def run(toy, prefect_api) -> RunRecord:
    """A run of the toy: numbers -> train -> summary."""
    with registry.recording("toy", {}):
        toy.load("toytasks.flows").pipeline()
    return registry.find("toy")


def own_store() -> Store:
    return Store(output_folder() / "store")


def test_a_stage_is_proven_by_its_key_and_its_bytes(run):
    step = proven(own_store(), run.name, "train", run.stages["train"])
    numbers = run.artifacts()["numbers"]
    assert (step.stage, step.label, step.run, step.artifact) == ("train", "train", "toy-1", run.artifacts()["train"])
    assert (step.input("data"), step.input("reward"), step.inputs()) == (numbers.digest, "", {"data": numbers.digest})


def test_the_way_back_to_the_data_is_in_order(run):
    steps = ancestry(own_store(), run.artifacts()["summary[all]"].digest)
    assert [step.label for step in steps] == ["numbers", "train", "summary[all]"]
    assert steps[-1].inputs() == {"models.model": run.artifacts()["train"].digest}
    assert ancestry(own_store(), "ab" * 32) == []


def test_a_record_that_names_another_artifact_proves_nothing(run):
    forged = run.stages["train"].model_copy(update={"artifact": run.artifacts()["numbers"]})
    with pytest.raises(Unproven, match=r"train of toy-1 names .* and its key made"):
        proven(own_store(), run.name, "train", forged)


def test_a_changed_document_proves_nothing(run):
    stage = run.stages["train"]
    path = own_store().root / "keydocs" / f"{stage.key}.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps({**document, "inputs": {"data": {"kind": "dataset", "digest": "ab" * 32}}}))
    with pytest.raises(Unproven, match="the key document of train of toy-1 is missing or was changed"):
        proven(own_store(), run.name, "train", stage)
    assert [step.label for step in ancestry(own_store(), run.artifacts()["summary[all]"].digest)] == ["summary[all]"]


def test_a_damaged_report_proves_nothing(run):
    artifact = run.artifacts()["train"]
    proven(own_store(), run.name, "train", run.stages["train"])
    path = own_store().folder(artifact.digest) / "model.json"
    status = path.stat()
    path.chmod(0o644)
    path.write_text(path.read_text().replace("6", "7"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size and time: only its bytes tell
    with pytest.raises(Unproven, match="has other bytes"):
        proven(own_store(), run.name, "train", run.stages["train"])


def test_a_stage_that_did_not_finish_proves_nothing(run):
    with pytest.raises(Unproven, match="has no artifact"):
        proven(own_store(), run.name, "train", run.stages["train"].model_copy(update={"artifact": None}))
