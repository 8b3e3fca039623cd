"""Stage: direct preference optimisation."""

from models.configs.dpo import DPOConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.dpo:train")
def dpo(config: DPOConfig, policy: Artifact, preferences: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """DPO: the policy widens the gap between chosen and rejected completions, without a reward model."""
    return context.run(config, seed, policy=policy, preferences=preferences)
