"""Stage: the suite of prompts with right answers."""

from models.configs.verifiable import VerifiableConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.suites.verifiable:verifiable", fan_out="chunks")
def verifiable(config: VerifiableConfig, policy: Artifact, data: Artifact | None = None, *, seed: int, context: StageContext) -> Artifact:
    """Verifiable: accuracy and pass@k on prompts with right answers, by task and difficulty."""
    return context.run(config, seed, policy=policy, data=data)
