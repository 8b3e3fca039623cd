"""Stage: proximal policy optimisation."""

from models.configs.ppo import PPOConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.ppo:train")
def ppo(
    config: PPOConfig, policy: Artifact, data: Artifact, reward: Artifact | None = None, *, seed: int, context: StageContext
) -> Artifact:
    """PPO: critic, generalised advantages, clipped ratios and values, KL to the starting policy inside the reward.

    The reward model is needed only where it is a reward.
    """
    return context.run(config, seed, policy=policy, data=data, reward=reward)
