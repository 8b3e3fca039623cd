"""Evidence for promotion: what a run found of a policy, traced to the digest of that policy, and the same of its opponent.

A report counts only if the store proves that it was made of this policy (tasks/lineage.py). The opponent is judged anew by calling the
candidate's own stages with the opponent in its place: where it was judged like that before this is a cache hit, else it is computed.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from models.evidence import (
    answer_scores,
    evaluation_quantities,
    evaluation_rows,
    findings_of,
    held_out_ids,
    suite_quantities,
    trained_prompts,
    training_tables,
    was_overoptimised,
)
from models.promotion import Evidence, Finding, Quantity
from tasks import registry
from tasks.home import home
from tasks.lineage import Step, Unproven, ancestry, proven
from tasks.registry import RunRecord
from tasks.store import Artifact, ArtifactInvalid, Store

EVALUATION = "evaluation"


@dataclass
class Reports:
    """What a run has on one policy: its evaluation, its suites by name, and what compares it with others."""

    name: str
    policy: Artifact
    evaluation: Step | None = None
    suites: dict[str, Step] = field(default_factory=dict)
    findings: list[Finding] | None = None
    overoptimised: bool | None = None
    baseline: str = ""
    problems: list[str] = field(default_factory=list)

    def steps(self) -> dict[str, Step]:
        """By source of numbers."""
        return ({EVALUATION: self.evaluation} if self.evaluation else {}) | self.suites


# What a run has


def reports_of(run: RunRecord, name: str) -> Reports:
    """Everything that a run found of the policy that it, or its comparison, calls by a name.

    Raises:
        ValueError: the run has no policy of that name.
    """
    store = Store(home() / "store")
    steps, unproven = _reports(store, run)
    own = run.artifacts().get(name)
    judged = steps.get(f"evaluate[{name}]")
    policy = own if own is not None and own.kind == "policy" else _artifact(store, judged.input("policy")) if judged else None
    if policy is None:
        raise ValueError(_no_policy(run, name, unproven))
    found = Reports(name, policy, problems=_problems(name, unproven))
    if judged is not None and judged.input("policy") != policy.digest:
        found.problems.append(f"evaluate[{name}] judged the policy {judged.input('policy')[:12]}, and not {policy.digest[:12]}")
        judged = None
    found.evaluation = judged or next((s for s in steps.values() if s.stage == "evaluate" and s.input("policy") == policy.digest), None)
    if found.evaluation is None:
        found.problems.append(f"{run.name} holds no evaluation of {policy.digest[:12]}")
    found.baseline = next((str(step.document["config"]["baseline"]) for step in steps.values() if step.stage == "comparison"), "")
    for step in steps.values():
        _add(store, step, found)
    return found


def _reports(store: Store, run: RunRecord) -> tuple[dict[str, Step], dict[str, str]]:
    """The proven reports of a run by label, and why others are not."""
    steps, unproven = {}, {}
    for label, stage in run.stages.items():
        if stage.artifact is not None and stage.artifact.kind == "report":
            try:
                steps[label] = proven(store, run.name, label, stage)
            except Unproven as error:
                unproven[label] = str(error)
    return steps, unproven


def _problems(name: str, unproven: Mapping[str, str]) -> list[str]:
    return [text for label, text in unproven.items() if label == f"evaluate[{name}]" or label.endswith((f"[{name}]", "behaviour"))]


def _no_policy(run: RunRecord, name: str, unproven: Mapping[str, str]) -> str:
    if text := unproven.get(f"evaluate[{name}]"):
        return text
    judged = [label.removeprefix("evaluate[").removesuffix("]") for label in run.stages if label.startswith("evaluate[")]
    return f"The run {run.name} has no policy {name!r}. It evaluated: {', '.join(judged) or 'none'}."


def _add(store: Store, step: Step, found: Reports) -> None:
    """Take from a report what it says of the policy, if it is about it."""
    folder = store.folder(step.artifact.digest)
    if (folder / "suite.json").is_file() and step.input("policy") == found.policy.digest:
        found.suites[suite_quantities(folder)[0]] = step
    if (folder / "behaviour.json").is_file() and found.evaluation is not None:
        names = [name for name, digest in step.inputs().items() if digest == found.evaluation.artifact.digest]
        for name in names:
            found.findings = findings_of(folder, name.removeprefix("evaluations."))
    if (folder / "overoptimisation.json").is_file() and _is_about(step, found):
        found.overoptimised = was_overoptimised(folder)


def _is_about(step: Step, found: Reports) -> bool:
    """Whether an over-optimisation curve is of the training that ended in this policy: the policy, or its evaluation, is on it."""
    own = {found.policy.digest, found.evaluation.artifact.digest if found.evaluation else ""}
    return bool(own & set(step.inputs().values()))


def _artifact(store: Store, digest: str) -> Artifact:
    return store.find(digest)


# The opponent


def judged_again(candidate: Reports, policy: Artifact, name: str) -> Reports:
    """A policy judged as the candidate was: by the same stages, settings, seed and data.

    Raises:
        ArtifactInvalid: the policy's files, or those of an input, are gone or damaged.
    """
    other = Reports(name, policy)
    for source, step in candidate.steps().items():
        label = name if source == EVALUATION else f"{name}/{source}"
        again = _call_again(step, policy, label)
        if source == EVALUATION:
            other.evaluation = again
        else:
            other.suites[source] = again
    return other


def _call_again(step: Step, policy: Artifact, label: str) -> Step:
    store = Store(home() / "store")
    stage = getattr(importlib.import_module(f"tasks.{step.stage}"), step.stage)
    config = get_type_hints(stage.function)["config"].model_validate(step.document["config"])
    inputs = {name: _filled(store, value) for name, value in step.document["inputs"].items()} | {"policy": policy}
    if "seed" in stage.signature.parameters:
        inputs["seed"] = step.document["seed"]
    named = stage.named(label)
    named(config, **inputs)
    run = registry.current_run()
    assert run is not None, "promotion runs inside a recorded pipeline"
    return proven(store, run.name, named.label, run.record.stages[named.label])


def _filled(store: Store, value: Any) -> Any:
    """An input of a key document as it was given: digests become artifacts."""
    if isinstance(value, dict) and set(value) == {"kind", "digest"}:
        try:
            return store.find(str(value["digest"])).model_copy(update={"kind": str(value["kind"])})
        except ValueError as error:
            raise ArtifactInvalid(f"{value['kind']} {str(value['digest'])[:12]}, by which the candidate was judged, is gone") from error
    if isinstance(value, dict):
        return {name: _filled(store, part) for name, part in value.items()}
    return [_filled(store, part) for part in value] if isinstance(value, list) else value


# As the gate reads it


def evidence_of(reports: Reports) -> Evidence:
    """The numbers of a policy and the conditions under which they were found."""
    store = Store(home() / "store")
    problems = [*reports.problems, *store.problems(reports.policy, "full")]
    quantities: dict[str, Quantity] = {}
    scores: dict[str, list[float]] = {}
    held_out: list[str] = []
    data, seen = "", 0
    try:
        if reports.evaluation is not None:
            rows = evaluation_rows(store.folder(reports.evaluation.artifact.digest))
            quantities, scores = evaluation_quantities(rows), answer_scores(rows)
            data = reports.evaluation.input("data")
            held_out = held_out_ids(store.folder(data))
            seen = trained_prompts(store.folder(data), _tables(store, reports.policy.digest))
        for step in reports.suites.values():
            quantities |= suite_quantities(store.folder(step.artifact.digest))[1]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problems.append(f"its reports cannot be read ({type(error).__name__}: {error})")
    return Evidence(
        reports.name,
        reports.policy.digest,
        quantities=quantities,
        scores=scores,
        conditions={source: conditions_of(step) for source, step in reports.steps().items()},
        held_out=held_out,
        data=data,
        trained_prompts=seen,
        findings=reports.findings,
        overoptimised=reports.overoptimised,
        problems=problems,
    )


def _tables(store: Store, digest: str) -> list[Any]:
    """All tables that a policy, or what it learned from, was trained on."""
    return [path for step in ancestry(store, digest) for path in training_tables(store.folder(step.artifact.digest))]


def conditions_of(step: Step) -> dict[str, Any]:
    """All parts of a key but the policy, flat."""
    document = dict(step.document)
    document["inputs"] = {name: value for name, value in step.document["inputs"].items() if name != "policy"}
    return dict(_flat(document, ""))


def _flat(value: Any, path: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        return [leaf for name, part in value.items() for leaf in _flat(part, f"{path}.{name}" if path else str(name))]
    return [(path, value)]
