"""Stage: direct preference optimisation on K-way rankings."""

from models.configs.kwise_dpo import KWiseDPOConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.kwise_dpo:train")
def kwise_dpo(config: KWiseDPOConfig, policy: Artifact, preferences: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """K-wise DPO: the policy learns every comparison of each ranking at once, without a reward model."""
    return context.run(config, seed, policy=policy, preferences=preferences)
