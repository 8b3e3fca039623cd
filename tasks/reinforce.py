"""Stage: REINFORCE."""

from models.configs.reinforce import ReinforceConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.reinforce:train")
def reinforce(
    config: ReinforceConfig, policy: Artifact, data: Artifact, reward: Artifact | None = None, *, seed: int, context: StageContext
) -> Artifact:
    """REINFORCE: a completion's reward less a baseline times its score function. The reward model is needed only where it is a reward."""
    return context.run(config, seed, policy=policy, data=data, reward=reward)
