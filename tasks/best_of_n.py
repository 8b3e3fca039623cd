"""Stage: best-of-n sampling."""

from models.configs.best_of_n import BestOfNConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.best_of_n:best_of_n", fan_out="chunks")
def best_of_n(
    config: BestOfNConfig, policy: Artifact, data: Artifact, reward: Artifact | None = None, *, seed: int, context: StageContext
) -> Artifact:
    """Best of n: how good the best of 1, 2, 4, ... samples is, by the score that picks it and by the true one."""
    return context.run(config, seed, policy=policy, data=data, reward=reward)
