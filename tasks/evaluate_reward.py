"""Stage: evaluation of a reward model."""

from models.configs.evaluate_reward import EvaluateRewardConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.reward_evaluation:evaluate", fan_out="chunks")
def evaluate_reward(
    config: EvaluateRewardConfig,
    reward: Artifact,
    preferences: Artifact | None = None,
    labels: Artifact | None = None,
    policy: Artifact | None = None,
    data: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Artifact:
    """Evaluation of a reward model: accuracy by subset, calibration, agreement with people, taste for length, and the best-of-n curve."""
    return context.run(config, seed, reward=reward, preferences=preferences, labels=labels, policy=policy, data=data)
