"""Stage: the win rate of one policy."""

from models.configs.win_rate import WinRateConfig
from tasks.home import answer_cache
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.suites.win_rate:measure", fan_out="chunks")
def win_rate(
    config: WinRateConfig,
    policy: Artifact,
    data: Artifact | None = None,
    reference: Artifact | None = None,
    reward: Artifact | None = None,
    judge_model: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Artifact:
    """Win rate: the policy's answers beside those of a reference policy or reference texts, compared by a judge, length controlled."""
    given = {"data": data, "reference": reference, "reward": reward, "judge_model": judge_model}
    return context.run(config, seed, policy=policy, answers=answer_cache(), **given)
