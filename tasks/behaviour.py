"""Stage: what training did to the policies."""

import json

from models.configs.behaviour import BehaviourConfig
from tasks import tracking
from tasks.home import home
from tasks.plan import current_plan
from tasks.stage import StageContext, stage
from tasks.store import Artifact, Store


@stage(kind="report", runs="models.behaviour:behaviour", inline=True)
def behaviour(config: BehaviourConfig, evaluations: dict[str, Artifact], *, seed: int, context: StageContext) -> Artifact:
    """Behaviour: length, diversity, repetition, confidence and format of every policy against the baseline, and reward hacks by name."""
    return context.run(config, seed, evaluations=evaluations)


def publish(report: Artifact) -> None:
    """Show the findings in Prefect and MLflow, whether they were computed now or before."""
    pipeline = tracking.current_pipeline()
    if current_plan() is not None or pipeline is None:
        return
    content = json.loads((Store(home() / "store").path(report) / "behaviour.json").read_text(encoding="utf-8"))
    pipeline.page(content["markdown"], "behaviour")
