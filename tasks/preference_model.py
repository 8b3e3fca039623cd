"""Stage: a preference model with two arguments."""

from models.configs.preference_model import PreferenceModelConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="preference_model", runs="models.training.preference_model:train")
def preference_model(
    config: PreferenceModelConfig, policy: Artifact, preferences: Artifact, *, seed: int, context: StageContext
) -> Artifact:
    """Preference model: the probability that one completion beats another, which need not follow any order of strengths."""
    return context.run(config, seed, policy=policy, preferences=preferences)
