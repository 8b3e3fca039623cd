"""Stage: rejection-sampling fine-tuning."""

from models.configs.rejection_sampling import RejectionSamplingConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.rejection_sampling:train")
def rejection_sampling(
    config: RejectionSamplingConfig, policy: Artifact, preferences: Artifact, reward: Artifact, *, seed: int, context: StageContext
) -> Artifact:
    """Rejection sampling: the policy imitates the best of its own completions."""
    return context.run(config, seed, policy=policy, preferences=preferences, reward=reward)
