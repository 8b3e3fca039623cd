"""What promotion believes: reports whose key documents, records and bytes name the policy itself. No stage runs here; all are planted."""

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from data.measures import Suite, rate, write_suite
from data.records import Message, Prompt
from data.tables import write_table
from flows import evidence
from flows.evidence import evidence_of, reports_of
from flows.promotion import Outcome, PromotionConfig, settled
from models.configs.promotion import GateConfig
from tasks import decisions, registry
from tasks.champions import Registry
from tasks.key import digest_key, save_document
from tasks.lineage import proven
from tasks.registry import StageRecord
from tasks.store import Artifact, Store

PROMPTS = [Prompt(f"p{i}", "s", (Message("user", f"q{i}"),), "1", "exact") for i in range(150)]
ACCURACY = {"base": 0.2, "sft": 0.4, "good": 0.7, "weak": 0.41}


def named(artifact: Artifact) -> dict[str, str]:
    return {"kind": artifact.kind, "digest": artifact.digest}


class Planted:
    """A run of five policies, its stages put into the store and its records as they would be after a run."""

    def __init__(self, home: Path) -> None:
        self.store = Store(home / "store")
        self.data = self.put("dataset", {"test_prompts.parquet": lambda path: write_table(path, PROMPTS), "card.md": "---\n---\n# Data\n"})
        self.policies = {name: self.put("policy", {"weights": name}) for name in ACCURACY}
        self.stages: dict[str, StageRecord] = {}
        self.plant("base_model", {"kind": "scratch", "name": "none"}, {}, self.policies["base"])
        self.plant("curate", {"sources": []}, {"base": named(self.policies["base"])}, self.data)
        for name in ("sft", "good", "weak"):
            inputs = {"policy": named(self.policies["base"]), "data": named(self.data)}
            self.plant("sft", {"name": name}, inputs, self.policies[name], label=name)
        self.reports = {name: self.evaluated(name, policy) for name, policy in self.policies.items()}
        self.compare("behaviour", {"behaviour.json": self.behaviour()})
        self.compare("comparison", {"comparison.json": "{}"})

    def put(self, kind: str, files: Mapping[str, str | Callable[[Path], Any]]) -> Artifact:
        staging = self.store.new_staging()
        (staging / "out").mkdir()
        for name, content in files.items():
            path = staging / "out" / name
            path.write_text(content) if isinstance(content, str) else content(path)
        artifact = self.store.put(staging / "out", kind)
        self.store.discard(staging)
        return artifact

    def plant(self, stage: str, config: dict[str, Any], inputs: dict[str, Any], artifact: Artifact, label: str = "") -> None:
        """A stage that has run: key document, cache record, line in the run's record."""
        parts = {"config": config, "extra": {}, "inputs": inputs, "seed": 0, "sources": {"a.py": "1"}, "libraries": {}}
        document = {"format": 1, "stage": stage, "kind": artifact.kind, **parts, "python": "3.11"}
        key, records = digest_key(document), self.store.root / "records"
        save_document(self.store.root / "keydocs", key, document)
        (records / "keys" / key).write_text(json.dumps({"storage_key": key}))
        (records / "results" / key).write_text(json.dumps({"data": artifact.model_dump(mode="json")}))
        self.stages[label or stage] = StageRecord(key=key, artifact=artifact, outcome="computed", seconds=1.0)

    def evaluated(self, name: str, policy: Artifact) -> Artifact:
        draw = random.Random(name)
        answer = {"text": "t", "n_tokens": 4, "finished": True, "kl_nats": 0.5}
        right = [draw.random() < ACCURACY[name] for _ in PROMPTS]
        rows = [{"id": p.id, "sampled": [{**answer, "score": float(r), "correct": r}]} for p, r in zip(PROMPTS, right, strict=True)]
        report = self.put("report", {"evaluation.json": json.dumps({"rows": rows})})
        self.plant("evaluate", {"greedy": False}, {"policy": named(policy), "data": named(self.data)}, report, f"evaluate[{name}]")
        return report

    def behaviour(self, **findings: list[dict[str, str]]) -> str:
        policies = {name: {"measures": [], "findings": findings.get(name, [])} for name in ACCURACY}
        return json.dumps({"baseline": "sft", "policies": policies})

    def compare(self, stage: str, files: Mapping[str, str]) -> None:
        inputs = {"evaluations": {name: named(report) for name, report in self.reports.items()}}
        self.plant(stage, {"baseline": "sft"}, inputs, self.put("report", files))

    def record(self) -> registry.RunRecord:
        """Write the run down, once more."""
        for run in registry.runs():
            registry.remove(run.name)
        with registry.recording("quick", {}) as run:
            for label, stage in self.stages.items():
                run.stage(label, stage)
        return registry.find("quick")

    def again(self, step: Any, policy: Artifact, label: str) -> Any:
        """In place of the call of a stage: it would be a cache hit."""
        name = next(name for name, own in self.policies.items() if own == policy)
        return proven(self.store, "quick-1", f"evaluate[{name}]", self.stages[f"evaluate[{name}]"])

    def promoted(self, name: str, **gate: Any) -> Outcome:
        self.record()
        return settled(PromotionConfig(candidate=f"quick/{name}", name="m", gate=GateConfig(resamples=500, **gate)))


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database of MLflow's, which takes seconds to make."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def planted(home: Path, monkeypatch: pytest.MonkeyPatch, database: Path) -> Planted:
    (home / "mlflow").mkdir(parents=True)
    shutil.copy(database, home / "mlflow" / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home / 'mlflow' / 'mlflow.db'}")
    made = Planted(home)
    monkeypatch.setattr(evidence, "_call_again", made.again)
    return made


def test_from_the_first_champion_to_a_refused_second(planted: Planted):
    weak = planted.promoted("weak")
    assert not weak.record.accepted and weak.record.opponent == "sft, the baseline of its run: there is no champion yet"
    good = planted.promoted("good")
    assert good.record.accepted and (good.version, good.champion) == (1, 1)
    assert planted.promoted("good").note == "already champion"
    assert not planted.promoted("weak").record.accepted
    assert [record.accepted for record in decisions.decisions("m")] == [False, True, False]
    champion = Registry("m").champion()
    assert champion is not None and champion.digest == planted.policies["good"].digest
    spoiled = planted.store.folder(planted.policies["sft"].digest) / "weights"
    spoiled.chmod(0o644)
    spoiled.write_text("sfx")
    assert "evidence: weights has other bytes" in planted.promoted("sft").record.reasons


def problems(planted: Planted, name: str) -> list[str]:
    return list(evidence_of(reports_of(planted.record(), name)).problems)


def test_a_report_of_another_model_is_none(planted: Planted):
    planted.stages["evaluate[weak]"] = planted.stages["evaluate[good]"]
    (problem,) = problems(planted, "weak")[:1]
    assert problem.startswith("evaluate[weak] judged the policy ") and not planted.promoted("weak").record.accepted
    assert problems(planted, "good") == []


def test_a_report_whose_document_was_changed_is_none(planted: Planted):
    path = planted.store.root / "keydocs" / f"{planted.stages['evaluate[weak]'].key}.json"
    document = json.loads(path.read_text())
    document["inputs"]["policy"] = named(planted.policies["good"])
    path.write_text(json.dumps(document))
    assert "the key document of evaluate[weak] of quick-1 is missing or was changed" in problems(planted, "weak")[0]


def test_findings_are_taken_from_a_look_at_this_evaluation(planted: Planted):
    hack = {"check": "length", "severity": "hack", "message": "twice as long"}
    planted.compare("behaviour", {"behaviour.json": planted.behaviour(good=[hack])})
    assert planted.promoted("good").record.reasons == ["no reward hack: length: twice as long"]
    planted.reports["good"] = planted.reports["weak"]
    planted.compare("behaviour", {"behaviour.json": planted.behaviour()})
    assert planted.promoted("good").record.reasons == ["no reward hack: nobody looked at what training did to its behaviour"]


@pytest.mark.parametrize(("found", "reasons"), [(False, 0), (True, 1)])
def test_over_optimisation_is_that_of_its_own_training(planted: Planted, found: bool, reasons: int):
    curve = planted.put("report", {"overoptimisation.json": json.dumps({"overoptimised": found})})
    planted.plant("overoptimisation", {}, {"policy": named(planted.policies["good"])}, curve)
    assert len(planted.promoted("good").record.reasons) == reasons
    assert reports_of(planted.record(), "weak").overoptimised is None


def test_suites_of_the_policy_are_found_by_its_digest(planted: Planted):
    def write(path: Path) -> None:
        write_suite(path.parent, Suite("xstest", "safety", [rate("over_refusal", {"a": 0.0, "b": 1.0}, "lower")]))

    planted.plant("safety", {}, {"policy": named(planted.policies["good"])}, planted.put("report", {"suite.json": write}))
    assert list(reports_of(planted.record(), "good").suites) == ["xstest"] and reports_of(planted.record(), "weak").suites == {}
    assert "xstest/over_refusal" in evidence_of(reports_of(planted.record(), "good")).quantities


def test_prompts_that_it_was_trained_on_are_counted_along_its_lineage(planted: Planted):
    learned = planted.put("dataset", {"prompts.parquet": lambda path: write_table(path, PROMPTS[:7])})
    planted.plant("curate", {"sources": ["theirs"]}, {}, learned, label="curate[theirs]")
    planted.plant("sft", {"name": "good"}, {"data": named(learned)}, planted.policies["good"], "good")
    assert planted.promoted("good").record.reasons == ["unseen: 7 held-out prompts are in the data that it was trained on"]


def test_without_a_baseline_there_is_no_first_champion(planted: Planted):
    del planted.stages["comparison"]
    assert "name one with gate.baseline" in planted.promoted("good").record.reasons[0]
    assert planted.promoted("good", baseline="base").record.accepted


@pytest.mark.parametrize(("name", "message"), [("none", "has no policy 'none'. It evaluated: base, sft,"), ("curate", "no policy")])
def test_a_name_that_is_no_policy(planted: Planted, name: str, message: str):
    with pytest.raises(ValueError, match=message):
        reports_of(planted.record(), name)
