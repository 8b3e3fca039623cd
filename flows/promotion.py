"""Promotion: a policy of a run takes the champion's place in the registry if it beats it and is worse in nothing that the gate guards.

reports of the run -> the champion judged again like the candidate -> decision -> version, model card, alias
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from prefect import flow
from pydantic import Field

from data.markdown import inline
from flows.evidence import Reports, evidence_of, judged_again, reports_of
from flows.forms import FormConfig
from models.configs.promotion import GateConfig
from models.model_card import CardContent, Made, card, decision_table
from models.promotion import Decision, Evidence, decide
from tasks import decisions, registry
from tasks.champions import Overtaken, Registry, Version
from tasks.decisions import DecisionRecord
from tasks.home import home
from tasks.lineage import ancestry
from tasks.plan import current_plan
from tasks.promotion import card_file, promote, settle
from tasks.provenance import config_params
from tasks.registry import RunRecord
from tasks.store import Artifact, ArtifactInvalid, Store
from tasks.tracking import PipelineRun, pipeline

ATTEMPTS = 5  # at deciding, where another promoter is faster each time


class PromotionConfig(FormConfig):
    """Settings of the flow ``promotion``."""

    candidate: str = Field(min_length=1, description="RUN/POLICY: a run, or a recipe for its latest run, and a policy that it evaluated.")
    name: str = Field(default="policy", description="Registered model whose champion it is to become.")
    gate: GateConfig = Field(default_factory=GateConfig, description="What it must show.")
    dry_run: bool = Field(default=False, description="Decide and say so; write nothing down and move nothing.")


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate."""

    record: DecisionRecord
    markdown: str
    version: int = 0  # that it has in the registry; 0: it was not registered
    champion: int = 0  # that is champion now; 0: none is
    note: str = ""


@flow(name="promotion")
def promotion(config: PromotionConfig) -> Outcome | None:
    """Promote a policy, or refuse to, and write down why.

    Args:
        config: the candidate, the registered model and the gate.
    """
    tags = {"kind": "promotion", "promotion.model": config.name, "promotion.candidate": config.candidate}
    with pipeline("promotion", config, tags) as run:
        if current_plan() is not None:
            return None
        outcome = settled(config)
        publish(run, config.name, outcome)
        return outcome


def publish(run: PipelineRun, name: str, outcome: Outcome) -> None:
    """Show a decision, and the card of a new champion, in Prefect and MLflow."""
    run.table([_row(check) for check in outcome.record.checks], outcome.markdown, "decision")
    if outcome.version:
        run.page(card_file(name, outcome.version).read_text(encoding="utf-8"), "model_card")


def settled(config: PromotionConfig) -> Outcome:
    """Decide, and carry the decision out; again if another became champion meanwhile.

    Raises:
        ValueError: there is no such run or policy.
        Unreachable, Busy: MLflow is away, or another machine does not finish; the alias was not moved.
    """
    run, policy = _named(config.candidate)
    candidate = reports_of(run, policy)
    models = Registry(config.name)
    for _ in range(ATTEMPTS):
        try:
            return _attempt(config, models, candidate)
        except Overtaken:
            continue
    return _attempt(config, models, candidate)


def _named(candidate: str) -> tuple[RunRecord, str]:
    """Run and policy of RUN/POLICY; the latest run is the latest that is no promotion."""
    name, _, policy = candidate.partition("/")
    if not policy:
        raise ValueError(f"{candidate!r} names no policy of a run: write it as RUN/POLICY, such as quickstart/grpo")
    others = [run for run in registry.runs() if run.recipe != "promotion"]
    return (others[-1] if name == "latest" and others else registry.find(name)), policy


def _attempt(config: PromotionConfig, models: Registry, candidate: Reports) -> Outcome:
    champion = models.champion()
    if champion is not None:
        settle(models, champion)
        if champion.digest == candidate.policy.digest:
            return _already(config, candidate, champion)
    own = evidence_of(candidate)
    other, opponent = _opponent(config, candidate, champion)
    decision = decide(own, other, config.gate)
    record = _recorded(config, own, other, opponent, champion, decision)
    markdown = _markdown(record, decision)
    if config.dry_run or not decision.accepted:
        if not config.dry_run:
            decisions.write(record)
        return Outcome(record, markdown, champion=champion.number if champion else 0, note="dry run" if config.dry_run else "")

    def model_card() -> str:
        return card(_card_content(config, own, other, opponent, decision, record))

    try:
        version = promote(models, record, candidate.policy, champion, config.candidate, model_card)
    except ArtifactInvalid as error:  # it was whole a moment ago
        refusal = record.model_copy(update={"accepted": False, "reasons": [f"evidence: {error}"]})
        decisions.write(refusal)
        return Outcome(refusal, markdown, champion=champion.number if champion else 0)
    return Outcome(record, markdown, version.number, version.number)


# The opponent


def _opponent(config: PromotionConfig, candidate: Reports, champion: Version | None) -> tuple[Evidence, str]:
    """The champion, or without one the baseline of the candidate's run, judged as the candidate was."""
    name, words = "champion", f"champion version {champion.number}" if champion else ""
    try:
        if champion is not None:
            policy = Store(home() / "store").find(champion.digest)
        else:
            name, policy = _baseline(config, candidate)
            words = f"{name}, the baseline of its run: there is no champion yet"
        return evidence_of(judged_again(candidate, policy, name)), words
    except (ArtifactInvalid, ValueError) as error:
        digest = champion.digest if champion else ""
        return Evidence(name, digest, problems=[f"it cannot be judged: {error}"]), words or "nothing"


def _baseline(config: PromotionConfig, candidate: Reports) -> tuple[str, Artifact]:
    name = config.gate.baseline or candidate.baseline
    if not name:
        raise ValueError("there is no champion, and the run compared its policies with no baseline: name one with gate.baseline")
    return name, reports_of(_named(config.candidate)[0], name).policy


def _already(config: PromotionConfig, candidate: Reports, champion: Version) -> Outcome:
    words = f"version {champion.number} of {config.name} is this policy, and champion already; nothing was to do"
    record = decisions.decision(
        "promote",
        config.name,
        accepted=False,
        candidate=config.candidate,
        digest=candidate.policy.digest,
        opponent=f"champion version {champion.number}",
        opponent_digest=champion.digest,
        champion=champion.number,
        reasons=[words],
        checks=[],
        gate=config.gate.model_dump(mode="json"),
    )
    return Outcome(record, words, champion=champion.number, note="already champion")


# Writing down


def _recorded(
    config: PromotionConfig, own: Evidence, other: Evidence, opponent: str, champion: Version | None, decision: Decision
) -> DecisionRecord:
    return decisions.decision(
        "promote",
        config.name,
        accepted=decision.accepted,
        candidate=config.candidate,
        digest=own.digest,
        opponent=opponent,
        opponent_digest=other.digest,
        champion=champion.number if champion else 0,
        reasons=decision.reasons,
        checks=decision.to_json()["checks"],
        gate=config.gate.model_dump(mode="json"),
    )


def _row(check: dict[str, Any]) -> dict[str, Any]:
    """A check as a row of the table in MLflow and Prefect."""
    gain = check["gain"] or {}
    numbers = {"candidate": check["candidate"], "champion": check["champion"], "gain": gain.get("mean")}
    ends = {"gain_low": gain.get("low"), "gain_high": gain.get("high")}
    return {"check": check["check"], "result": check["status"], **numbers, **ends, "words": check["words"]}


def _markdown(record: DecisionRecord, decision: Decision) -> str:
    verdict = "accepted" if decision.accepted else "refused"
    head = f"# {inline(record.candidate)} {verdict} as champion of {inline(record.name)}\n\nCompared with {inline(record.opponent)}."
    return f"{head}\n\n{decision_table(decision)}\n\nDecision {record.id}, {record.at:%Y-%m-%d %H:%M} UTC.\n"


def _card_content(
    config: PromotionConfig, own: Evidence, other: Evidence, opponent: str, decision: Decision, record: DecisionRecord
) -> CardContent:
    store = Store(home() / "store")
    steps = ancestry(store, own.digest)
    base = next((step for step in steps if step.stage == "base_model"), None)
    made = [Made(s.label, s.run, s.stage, s.key, s.artifact.digest, s.inputs(), config_params(s.document["config"])) for s in steps]
    cards = {s.artifact.digest: store.folder(s.artifact.digest) / "card.md" for s in steps}
    settings = base.document["config"] if base else {}
    known = {"model": settings["name"], **base.artifact.meta, "kind": settings["kind"], **_stated(settings)} if base else {}
    texts = {digest: path.read_text(encoding="utf-8") for digest, path in cards.items() if path.is_file()}
    return CardContent(config.name, own, other, opponent, decision, record.id, made, known, texts)


def _stated(config: dict[str, Any]) -> dict[str, str]:
    """The licence that the model folder's own README states in its head, if it has one."""
    path = Path(str(config["name"])) / "README.md"
    if config["kind"] != "folder" or not path.is_file():
        return {}
    head = path.read_text(encoding="utf-8", errors="replace").split("---\n")
    try:
        stated = yaml.safe_load(head[1]) if len(head) > 2 and not head[0].strip() else None
    except yaml.YAMLError:
        stated = None
    return {"license": str(stated["license"])} if isinstance(stated, dict) and "license" in stated else {}
