"""Stage: collect preferences."""

from models.configs.preferences import PreferencesConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="preferences", runs="models.preferences:collect")
def collect_preferences(
    config: PreferencesConfig,
    policies: dict[str, Artifact],
    data: Artifact,
    reward: Artifact | None = None,
    candidates: Artifact | None = None,
    labels: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Artifact:
    """Preferences: several completions of each prompt from the policies, ranked by judges and paired."""
    return context.run(config, seed, policies=policies, data=data, reward=reward, candidates=candidates, labels=labels)
