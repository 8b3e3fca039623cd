"""Stage: the over-optimisation curve of a policy that kept snapshots."""

from models.configs.overoptimisation import OveroptimisationConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.overoptimisation:measure")
def overoptimisation(
    config: OveroptimisationConfig,
    policy: Artifact,
    reference: Artifact,
    data: Artifact,
    reward: Artifact | None = None,
    held_out_reward: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Artifact:
    """Over-optimisation: trained-on reward, held-out reward and verifier against the square root of the KL, and where to stop.

    The policy holds the snapshots of its training.
    """
    return context.run(config, seed, policy=policy, reference=reference, data=data, reward=reward, held_out_reward=held_out_reward)
