"""Stage: reward modelling."""

from models.configs.reward_model import RewardModelConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="reward_model", runs="models.training.reward_model:train")
def reward_model(config: RewardModelConfig, policy: Artifact, preferences: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Reward model: a scalar head on the policy learns to score chosen above rejected."""
    return context.run(config, seed, policy=policy, preferences=preferences)
