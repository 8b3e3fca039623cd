"""Stage: a value function of prefixes."""

from models.configs.guidance import PrefixValueConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="value_model", runs="models.training.prefix_value:train")
def prefix_value(
    config: PrefixValueConfig, policy: Artifact, data: Artifact, reward: Artifact, *, seed: int, context: StageContext
) -> Artifact:
    """Prefix value: from any prefix, the reward that the policy's own completions end with on average; guides decoding (CD)."""
    return context.run(config, seed, policy=policy, data=data, reward=reward)
