"""Stage: group-relative policy optimisation."""

from models.configs.grpo import GRPOConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.grpo:train")
def grpo(
    config: GRPOConfig, policy: Artifact, data: Artifact, reward: Artifact | None = None, *, seed: int, context: StageContext
) -> Artifact:
    """GRPO: each completion is judged against its siblings, no critic. The reward model is needed only where it is the reward."""
    return context.run(config, seed, policy=policy, data=data, reward=reward)
