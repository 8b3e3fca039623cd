"""The page of a run: gathered from its record and from what its stages left in the store, so that it is current and never cached.

    HOME/reports/<run>/report.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.lineage import Made, RunFacts, cost_of, flat
from models.plots import Point
from models.policy_metrics import cost_metrics
from models.report import Judged, page
from models.run import write_atomic
from models.spending import read_cost
from tasks import registry, tracking
from tasks.home import home
from tasks.journal import read_points
from tasks.key import input_digests, load_document
from tasks.registry import RunRecord, StageRecord
from tasks.store import Artifact, Store
from tasks.tracked import PipelineRun

_EVALUATION = re.compile(r"(?:evaluate|guided_evaluation)\[(.*)\]", re.DOTALL)
_SHOWN_METRICS = ("train/", "eval/")


def publish_report(content: Mapping[str, Any]) -> Path | None:
    """Write the page of the current run; give MLflow the page, and a run for each policy with the numbers of the table.

    Returns:
        Where the page lies; None outside of a run.
    """
    live, pipeline = registry.current_run(), tracking.current_pipeline()
    if live is None:
        return None
    facts, judged = facts_of(live.record), judged_in(live.record)
    text = page(content, judged, [facts])
    path = registry.report_path(live.name)
    write_page(path, text)
    if pipeline is not None:
        pipeline.file(text, "report.html")
        pipeline.link("report.html", "report", "The whole comparison as a page")
        for one in judged:
            _publish_policy(pipeline, content, one, facts)
    return path


def write_page(path: Path, text: str) -> None:
    """Replace the page at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def _publish_policy(pipeline: PipelineRun, content: Mapping[str, Any], one: Judged, facts: RunFacts) -> None:
    made = {stage.digest: stage for stage in facts.stages}.get(one.digest)
    data = next((stage for stage in facts.stages if stage.kind == "dataset"), None)
    tags = {"policy": one.name, "artifact_digest": one.digest, "baseline": content["baseline"]}
    tags |= {"stage": made.stage, "outcome": made.outcome} if made else {}
    tags |= {"data_digest": data.digest} if data else {}
    used = {stage.label: stage.digest for stage in (made, data) if stage is not None}
    metrics = content.get("metrics", {}).get(one.name, {}) | cost_metrics(cost_of(one.digest, facts.stages))
    pipeline.policy(one.name, tags, metrics, {label: _artifact(digest, facts) for label, digest in used.items()})


def _artifact(digest: str, facts: RunFacts) -> Artifact:
    kind = next(stage.kind for stage in facts.stages if stage.digest == digest)
    return Artifact(kind=kind, digest=digest, size_bytes=0, n_files=0)


# What a record says


def facts_of(record: RunRecord) -> RunFacts:
    """The stages of a run that have an artifact, with what they were made from, took and reported."""
    store = Store(home() / "store")
    finished = ((label, stage, stage.artifact) for label, stage in record.stages.items() if stage.key)
    stages = [_made(record.name, label, stage, artifact, store) for label, stage, artifact in finished if artifact is not None]
    return RunFacts(record.name, record.recipe, dict(flat(record.config)), stages)


def judged_in(record: RunRecord) -> list[Judged]:
    """The policies that a run evaluated, by the name they have in its table."""
    found = []
    for name, stage in evaluations_of(record).items():
        digest = input_digests(document_of(stage)).get("policy")
        if digest is not None:
            found.append(Judged(name, digest, record.name))
    return found


def evaluations_of(record: RunRecord) -> dict[str, StageRecord]:
    """The finished evaluations of a run, by the name of the policy."""
    found = {}
    for label, stage in record.stages.items():
        match = _EVALUATION.fullmatch(label)
        if match and stage.artifact is not None:
            found[match.group(1)] = stage
    return found


def _made(run: str, label: str, stage: StageRecord, artifact: Artifact, store: Store) -> Made:
    document = document_of(stage)
    history: dict[str, list[Point]] = {}
    for point in read_points(store.root / "history" / f"{stage.key}.jsonl"):
        history.setdefault(point.name, []).append(Point(point.step, point.value))
    return Made(
        run=run,
        label=label,
        stage=document.get("stage") or label.partition("[")[0],
        kind=artifact.kind,
        digest=artifact.digest,
        outcome=stage.outcome,
        inputs=input_digests(document),
        config=dict(flat(document.get("config", {}))),
        cost=_cost(stage, store, history),
        history={name: points for name, points in history.items() if name.startswith(_SHOWN_METRICS)},
    )


def _cost(stage: StageRecord, store: Store, history: Mapping[str, Sequence[Point]]) -> dict[str, float]:
    """What computing the artifact took; of an artifact of an older version what the record and the journal tell."""
    cost = dict(read_cost(store.root / "costs" / f"{stage.key}.json") or {})
    if not cost and stage.outcome in ("computed", "resumed"):
        cost["seconds"] = stage.seconds
    rates, steps = history.get("time/tokens_per_s"), history.get("time/step_s")
    if rates and steps:
        cost["trained_tokens"] = round(sum(rate.y * step.y for rate, step in zip(rates, steps, strict=False)))
    return cost


def document_of(stage: StageRecord) -> Mapping[str, Any]:
    """The parts of a stage's key; empty where they are not kept."""
    return (load_document(home() / "store" / "keydocs", stage.key) if stage.key else None) or {}
