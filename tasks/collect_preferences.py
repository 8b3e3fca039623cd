"""Stage: collect preferences."""

from models.configs.preferences import PreferencesConfig
from tasks.home import answer_cache
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="preferences", runs="models.preferences:collect", fan_out="chunks")
def collect_preferences(
    config: PreferencesConfig,
    policies: dict[str, Artifact],
    data: Artifact,
    reward: Artifact | None = None,
    candidates: Artifact | None = None,
    labels: Artifact | None = None,
    judge_model: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Artifact:
    """Preferences: several completions of each prompt from the policies, ranked by judges and paired."""
    given = {"reward": reward, "candidates": candidates, "labels": labels, "judge_model": judge_model}
    return context.run(config, seed, policies=policies, data=data, answers=answer_cache(), **given)
