"""Stage: critique and revision by a constitution."""

from models.configs.constitution import ReviseConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="dataset", runs="models.constitution:revise", fan_out="chunks")
def revise(config: ReviseConfig, policy: Artifact, data: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Revision: the policy criticises and rewrites its own answers by a constitution; the rewritten ones are to be imitated."""
    return context.run(config, seed, policy=policy, data=data)
