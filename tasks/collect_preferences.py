"""Stage: collect preferences."""

from models.configs.preferences import PreferencesConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="preferences", runs="models.preferences:collect")
def collect_preferences(config: PreferencesConfig, policy: Artifact, data: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Preferences: several completions of each prompt from the policy, scored by a judge and paired."""
    return context.run(config, seed, policy=policy, data=data)
