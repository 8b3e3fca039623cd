"""Stage: online direct preference optimisation."""

from models.configs.online_dpo import OnlineDPOConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.online_dpo:train")
def online_dpo(
    config: OnlineDPOConfig, policy: Artifact, data: Artifact, reward: Artifact | None = None, *, seed: int, context: StageContext
) -> Artifact:
    """Online DPO: the policy's own best completion against its worst, round after round. The reward model only where it is the reward."""
    return context.run(config, seed, policy=policy, data=data, reward=reward)
