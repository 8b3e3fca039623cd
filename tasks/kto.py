"""Stage: Kahneman-Tversky optimisation."""

from models.configs.kto import KTOConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.kto:train")
def kto(config: KTOConfig, policy: Artifact, labels: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """KTO: single completions labelled good or bad, of curated data or of collected preferences, instead of pairs."""
    return context.run(config, seed, policy=policy, labels=labels)
