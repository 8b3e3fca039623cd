"""Stage: the suite of instructions that a rule can check."""

from models.configs.instructions import InstructionsConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.suites.instructions:instructions", fan_out="chunks")
def instructions(config: InstructionsConfig, policy: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Instructions: how often a policy keeps to instructions about form, length, language and words."""
    return context.run(config, seed, policy=policy)
