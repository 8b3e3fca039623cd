"""Stage: evaluation of one policy."""

from models.configs.evaluation import EvaluateConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.evaluation:evaluate", fan_out="chunks")
def evaluate(
    config: EvaluateConfig,
    policy: Artifact,
    reference: Artifact,
    data: Artifact,
    reward: Artifact | None = None,
    held_out_reward: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Artifact:
    """Evaluation: held-out prompts answered and judged, with KL to the reference and, where there is one, the reward model's view."""
    return context.run(config, seed, policy=policy, reference=reference, data=data, reward=reward, held_out_reward=held_out_reward)
