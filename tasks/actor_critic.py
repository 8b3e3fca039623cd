"""Stage: actor-critic."""

from models.configs.reinforce import ActorCriticConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.actor_critic:train")
def actor_critic(
    config: ActorCriticConfig, policy: Artifact, data: Artifact, reward: Artifact | None = None, *, seed: int, context: StageContext
) -> Artifact:
    """Actor-critic: rewards to go less a learned value. The reward model is needed only where it is a reward."""
    return context.run(config, seed, policy=policy, data=data, reward=reward)
