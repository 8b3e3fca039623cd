"""Stage: the toxicity suite on one policy."""

from models.configs.toxicity import ToxicityConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.suites.toxicity:measure", fan_out="chunks")
def toxicity(config: ToxicityConfig, policy: Artifact, data: Artifact | None = None, *, seed: int, context: StageContext) -> Artifact:
    """Toxicity: the policy's answers read by a packaged classifier, or one of your own, and by word lists."""
    return context.run(config, seed, policy=policy, data=data)
