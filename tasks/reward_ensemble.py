"""Stage: an ensemble of reward models."""

from models.configs.ensembles import EnsembleConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="reward_model", runs="models.training.reward_ensemble:combine")
def reward_ensemble(
    config: EnsembleConfig, members: list[Artifact], preferences: Artifact | None = None, *, seed: int, context: StageContext
) -> Artifact:
    """Ensemble: reward models that were trained with different seeds take the place of one, and show where they disagree."""
    return context.run(config, seed, members=members, preferences=preferences)
