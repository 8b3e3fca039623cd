"""Stage: online rejection sampling."""

from models.configs.online_rejection_sampling import OnlineRejectionSamplingConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.online_rejection_sampling:train")
def online_rejection_sampling(
    config: OnlineRejectionSamplingConfig,
    policy: Artifact,
    data: Artifact,
    reward: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Artifact:
    """Online rejection sampling: the policy imitates its own best completions, sampled anew each round."""
    return context.run(config, seed, policy=policy, data=data, reward=reward)
