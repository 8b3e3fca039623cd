"""Retraining, night after night: what is new since the champion is learned beside a share of what is old, and the result has to earn its
place.

slot of the schedule -> what is new -> curate -> { sft, reward_model, dpo, grpo } -> evaluate -> comparison -> gate -> approval -> promotion
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.states import Completed
from pydantic import Field, model_validator

from data.configs import CurateConfig, SourceConfig
from flows.approval import answer
from flows.judge import RewardFlowConfig, judge
from flows.material import Finding, Material, look
from flows.promotion import Outcome, PromotionConfig, publish, settled
from flows.scheduled import why_skipped
from models.configs.dpo import DPOConfig
from models.configs.evaluation import ComparisonConfig
from models.configs.grpo import GRPOConfig
from models.configs.promotion import GateConfig
from models.configs.retrain import ApprovalConfig, Method, NewsConfig, SlotConfig
from models.configs.sft import SFTConfig
from models.evidence import held_out_ids, trained_prompts, training_tables
from tasks import attempts, decisions, provenance, registry
from tasks.attempts import Attempt
from tasks.base_model import base_model
from tasks.champions import Registry, Version
from tasks.curate import curate
from tasks.decisions import DecisionRecord
from tasks.dpo import dpo
from tasks.grpo import grpo
from tasks.home import home
from tasks.key import semantic
from tasks.plan import current_plan
from tasks.reward_model import reward_model
from tasks.sft import sft
from tasks.store import Artifact, Store
from tasks.tracking import PipelineRun, pipeline

INCUMBENT = "incumbent"  # the champion; before there is one, the base model
TABLES = {"sft": "demonstrations", "dpo": "preferences", "grpo": "prompts"}

log = logging.getLogger(__name__)


def _sums(role: str) -> SourceConfig:
    task = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}
    return SourceConfig.model_validate({"task": task, "role": role})


class RetrainConfig(RewardFlowConfig):
    """Settings of the flow ``retrain``."""

    name: str = Field(default="policy", description="Registered model whose champion is to be improved.")
    start: Literal["champion", "base"] = Field(default="champion", description="Where training starts; the first one from the base.")
    method: Method = Field(default="sft", description="How it trains; GRPO and an evaluation by reward model train that first.")
    news: NewsConfig = Field(default_factory=NewsConfig, description="What counts as new, and how much of the old is repeated.")
    curate: CurateConfig = Field(
        default_factory=lambda: CurateConfig(sources=[_sums("train"), _sums("test")]),
        description="Data. Held-out rows come from a source with role test, which no retraining touches.",
    )
    sft: SFTConfig = Field(default_factory=SFTConfig, description="Supervised fine-tuning.")
    dpo: DPOConfig = Field(default_factory=DPOConfig, description="DPO.")
    grpo: GRPOConfig = Field(default_factory=GRPOConfig, description="GRPO.")
    comparison: ComparisonConfig = Field(
        default_factory=lambda: ComparisonConfig(baseline=INCUMBENT), description="The table at the end; incumbent is the champion."
    )
    gate: GateConfig = Field(default_factory=GateConfig, description="What the candidate must show.")
    approval: ApprovalConfig = Field(default_factory=ApprovalConfig, description="Whether a person is asked.")
    slot: SlotConfig = Field(default_factory=SlotConfig, description="What becomes of late slots of the schedule.")

    @model_validator(mode="after")
    def _usable(self) -> RetrainConfig:
        if not any(source.role == "test" for source in self.curate.sources):
            raise ValueError("curate.sources has none with role test: held-out rows drawn anew may be ones that a champion learned")
        if missing := [TABLES[step] for step in self.steps if not getattr(self.curate, TABLES[step])]:
            raise ValueError(f"method {self.method} learns from curate.{missing[0]}, which is 0: set it to -1, or to a number of rows")
        if self.wants_reward and not self.curate.preferences:
            raise ValueError("the reward model learns from curate.preferences, which is 0: set it to -1, or to a number of rows")
        if not self.curate.test_prompts:
            raise ValueError("curate.test_prompts is 0: champion and candidate are compared on held-out prompts")
        return self

    @property
    def steps(self) -> Sequence[str]:
        """The stages of the method, in order."""
        return self.method.split("_")

    @property
    def wants_reward(self) -> bool:
        """Whether a reward model is trained, to reward GRPO or to judge."""
        return self.evaluate.judge == "reward_model" or ("grpo" in self.steps and "reward_model" in self.grpo.reward_sources)


@flow(name="retrain")
def retrain(config: RetrainConfig) -> State | None:
    """Retrain if something is new since the champion, and promote what is better.

    Args:
        config: what counts as new, the method, the gate, and who is asked.
    """
    champion = _champion(config)
    if current_plan() is not None:
        _train(config, _look(config, champion).curate, champion)
        return None
    if words := why_skipped(config.slot):
        return _ended("Skipped", words)
    with registry.in_use():
        _settle_unanswered(config.name)
        attempt = _going_on(config, champion) or _begun(config, champion)
    if isinstance(attempt, State):
        return attempt
    with pipeline("retrain", config, {"retrain.model": config.name, "retrain.material": attempt.material}) as run:
        if not attempt.candidate:
            attempt = attempt.but(candidate=_train(config, CurateConfig.model_validate(attempt.curate), champion))
        return _decided(config, attempt, run)


# What is there to do


def _champion(config: RetrainConfig) -> Version | None:
    return Registry(config.name).champion()


def _look(config: RetrainConfig, champion: Version | None) -> Material:
    base = config.base_model if config.start == "base" or champion is None else None
    return look(config.curate, base, config.news, champion.digest if champion else "")


def _flow_run_id() -> str:
    run = provenance.flow_run()
    return str(run.id) if run is not None else ""


def _going_on(config: RetrainConfig, champion: Version | None) -> Attempt | State | None:
    """What this flow run had begun before it crashed or waited for a person."""
    attempt = attempts.of_flow_run(config.name, _flow_run_id())
    if attempt is None or not (attempt.settled or attempt.candidate or attempt.champion == (champion.digest if champion else "")):
        return None  # with another champion something else is new
    _say(f"goes on with {attempt.candidate or 'what it had begun'}")
    return _ended(attempt.status.capitalize(), attempt.words) if attempt.settled else attempt


def _begun(config: RetrainConfig, champion: Version | None) -> Attempt | State:
    """A new attempt, or the end of a run that has nothing to do."""
    material = _look(config, champion)
    since = f"champion v{champion.number}" if champion else "the beginning"
    for finding in material.findings:
        _say(f"{finding.what}: {finding.words}{' (new)' if finding.new else ''}")
    _show(material.findings, since)
    if not material.new:
        return _ended("NothingNew", f"nothing new since {since}")
    digest = material.digest(semantic(config))
    earlier = attempts.of_material(config.name, digest)
    if earlier is not None and (earlier.settled or earlier.status == "asked"):
        return _ended("NothingNew", f"nothing new since the candidate {earlier.candidate} of {earlier.begun:%Y-%m-%d}: {earlier.words}")
    own = {"model": config.name, "material": digest, "flow_run": _flow_run_id(), "begun": datetime.now(UTC)}
    data = material.curate.model_dump(mode="json")
    return attempts.keep(Attempt(**own, curate=data, champion=champion.digest if champion else ""))


# Training


def _train(config: RetrainConfig, data_config: CurateConfig, champion: Version | None) -> str:
    """Train, and judge beside the champion. Returns RUN/POLICY of the candidate."""
    seed = config.seed
    crowned = Store(home() / "store").find(champion.digest) if champion else None
    first = crowned if crowned is not None and config.start == "champion" else base_model(config.base_model, seed=seed)
    data = curate(data_config, first, seed=seed)
    _require_unseen(data)
    reward = reward_model(config.reward_model, first, data, seed=seed) if config.wants_reward else None
    policies = {INCUMBENT: crowned or first}
    policy = first
    for step in config.steps:
        policy = policies[step] = _step(step, config, policy, data, reward)
    judge(config, policies, first, data, reward, data if reward is not None and data_config.test_preferences else None)
    live = registry.current_run()
    return f"{live.name if live else 'retrain'}/{config.steps[-1]}"


def _step(step: str, config: RetrainConfig, policy: Artifact, data: Artifact, reward: Artifact | None) -> Artifact:
    if step == "sft":
        return sft(config.sft, policy, data, seed=config.seed)
    if step == "dpo":
        return dpo(config.dpo, policy, data, seed=config.seed)
    return grpo(config.grpo, policy, data, reward if "reward_model" in config.grpo.reward_sources else None, seed=config.seed)


def _require_unseen(data: Artifact) -> None:
    """Say that no held-out prompt is in a training table. Raises ValueError where one is."""
    if current_plan() is not None:
        return
    folder = Store(home() / "store").path(data)
    seen, held = trained_prompts(folder, training_tables(folder)), len(held_out_ids(folder))
    if seen:
        raise ValueError(f"{seen} of {held} held-out prompts are in the training tables of {data.digest[:12]}")
    _say(f"held-out prompts: {held}, none of them in a training table")


# Deciding


def _decided(config: RetrainConfig, attempt: Attempt, run: PipelineRun) -> State:
    """Gate, approval, promotion, in this order; each of them can refuse."""
    wanted = PromotionConfig(candidate=attempt.candidate, name=config.name, gate=config.gate)
    outcome = settled(wanted.model_copy(update={"dry_run": True}))
    if outcome.record.accepted:
        if config.approval.asked and (refusal := _asked(config, attempt, outcome)):
            publish(run, config.name, outcome)
            return _turned_down(attempt, refusal, outcome.record)
        outcome = settled(wanted)
    elif outcome.note != "already champion":
        decisions.write(outcome.record)
    publish(run, config.name, outcome)
    if not outcome.version and outcome.note != "already champion":
        return _refused(attempt, "; ".join(outcome.record.reasons))
    words = f"{attempt.candidate} is champion v{outcome.champion} of {config.name}"
    attempt.but(status="promoted", words=words)
    return _ended("Promoted", words)


def _asked(config: RetrainConfig, attempt: Attempt, outcome: Outcome) -> str:
    """Ask a person. Returns why the candidate is refused; empty where its name was typed."""
    name = f"{config.name}-{outcome.record.digest[:8]}"
    until = attempt.until or datetime.now(UTC) + timedelta(hours=config.approval.patience_h)
    attempt.but(status="asked", until=until, words=f"a person is asked for {name} until {until:%Y-%m-%d %H:%M} UTC")
    _say(f"{attempt.candidate} passed the gate and waits for a person, who types {name} in the Prefect UI")
    try:
        typed = answer(name, outcome.markdown, config.approval, until).strip()
    except TimeoutError as silence:
        return str(silence)
    return "" if typed == name else f"{typed[:100]!r} was typed, and not {name}"


def _turned_down(attempt: Attempt, words: str, record: DecisionRecord) -> State:
    """A refusal by a person, written down like those of the gate."""
    reasons = [f"approval: {words}"]
    decisions.write(record.model_copy(update={"accepted": False, "reasons": reasons}))
    return _refused(attempt, reasons[0])


def _refused(attempt: Attempt, words: str) -> State:
    attempt.but(status="refused", words=f"refused: {words}")
    return _ended("Refused", f"{attempt.candidate} is not promoted: {words}")


def _settle_unanswered(name: str) -> None:
    """Write down the refusal of candidates on which nobody answered in time, and for which no process waits."""
    for attempt in attempts.attempts(name):
        if attempt.unanswered and attempt.flow_run != _flow_run_id():
            words = f"approval: nobody answered by {attempt.until:%Y-%m-%d %H:%M} UTC"
            nothing = {"digest": "", "opponent": "", "opponent_digest": "", "champion": 0, "checks": [], "gate": {}}
            decisions.write(decisions.decision("promote", name, accepted=False, candidate=attempt.candidate, reasons=[words], **nothing))
            _refused(attempt, words)


# Telling


def _say(words: str) -> None:
    from prefect.logging import get_run_logger

    get_run_logger().warning("%s", words)  # as a warning it is seen without --verbose


def _ended(name: str, words: str) -> State:
    _say(words)
    return Completed(name=name, message=words, data=words)


def _show(findings: list[Finding], since: str) -> None:
    from prefect.artifacts import create_table_artifact

    try:
        create_table_artifact(table=[finding.row() for finding in findings], key="whats-new", description=f"Since {since}")
    except Exception as error:  # a page is not worth the run
        log.warning("What is new is not shown in Prefect: %s", error)
