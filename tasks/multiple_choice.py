"""Stage: the suite of questions with given choices."""

from models.configs.multiple_choice import MultipleChoiceConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.suites.multiple_choice:multiple_choice", fan_out="chunks")
def multiple_choice(config: MultipleChoiceConfig, policy: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Multiple choice: which choice a policy finds likeliest, and truthfulness where several are true."""
    return context.run(config, seed, policy=policy)
