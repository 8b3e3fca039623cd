"""Stage: preferences from an AI judge."""

from models.configs.ai_feedback import AIFeedbackConfig
from tasks.home import answer_cache
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="preferences", runs="models.ai_feedback:collect")
def ai_feedback(
    config: AIFeedbackConfig, policy: Artifact, judge: Artifact, data: Artifact, *, seed: int, context: StageContext
) -> Artifact:
    """AI feedback: several completions of each prompt from the policy, compared by a judge that goes by a constitution."""
    return context.run(config, seed, policy=policy, judge=judge, data=data, cache=answer_cache())
