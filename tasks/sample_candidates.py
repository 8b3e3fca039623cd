"""Stage: completions for people to judge."""

from models.configs.preferences import CandidatesConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="candidates", runs="models.preferences:sample", fan_out="chunks")
def sample_candidates(
    config: CandidatesConfig, policies: dict[str, Artifact], data: Artifact, *, seed: int, context: StageContext
) -> Artifact:
    """Candidates: several completions of each prompt from the policies, for people to judge."""
    return context.run(config, seed, policies=policies, data=data)
