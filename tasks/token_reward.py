"""Stage: a reward for every next token."""

from models.configs.guidance import TokenRewardConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="token_reward_model", runs="models.training.token_reward:train")
def token_reward(config: TokenRewardConfig, policy: Artifact, preferences: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Token reward: one pass scores every next token by the best completion it can lead to; guides decoding (FaRMA)."""
    return context.run(config, seed, policy=policy, preferences=preferences)
