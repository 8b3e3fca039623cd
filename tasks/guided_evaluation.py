"""Stage: evaluation of one way of decoding."""

from models.configs.guidance import GuidedEvaluationConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.guided_evaluation:evaluate")
def guided_evaluation(
    config: GuidedEvaluationConfig,
    policy: Artifact,
    reference: Artifact,
    data: Artifact,
    reward: Artifact,
    scorer: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Artifact:
    """Guided evaluation: held-out prompts answered under a reward's guidance; the reward of the answers and the time they took."""
    return context.run(config, seed, policy=policy, reference=reference, data=data, reward=reward, scorer=scorer)
