"""Stage: Nash mirror descent."""

from models.configs.nash_md import NashMDConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.nash_md:train")
def nash_md(
    config: NashMDConfig, policy: Artifact, data: Artifact, reward: Artifact | None = None, *, seed: int, context: StageContext
) -> Artifact:
    """Nash-MD: the policy learns to win against a mixture of itself and the reference. The reward model only where it is the judge."""
    return context.run(config, seed, policy=policy, data=data, reward=reward)
