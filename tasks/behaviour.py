"""Stage: what training did to the policies."""

from models.configs.behaviour import BehaviourConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.behaviour:behaviour", inline=True)
def behaviour(config: BehaviourConfig, evaluations: dict[str, Artifact], *, seed: int, context: StageContext) -> Artifact:
    """Behaviour: length, diversity, repetition, confidence and format of every policy against the baseline, and reward hacks by name."""
    return context.run(config, seed, evaluations=evaluations)
