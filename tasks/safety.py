"""Stage: the safety suite on one policy."""

from models.configs.safety import SafetyConfig
from tasks.home import answer_cache
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.suites.safety:measure", fan_out="chunks")
def safety(
    config: SafetyConfig, policy: Artifact, judge_model: Artifact | None = None, *, seed: int, context: StageContext
) -> Artifact:
    """Safety: how often safe prompts are refused and unsafe ones followed, by type of prompt."""
    return context.run(config, seed, policy=policy, judge_model=judge_model, answers=answer_cache())
