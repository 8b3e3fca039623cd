"""Stage: how well a judge agrees with people."""

import json

from models.configs.judge_accuracy import JudgeAccuracyConfig
from tasks import tracking
from tasks.home import answer_cache, home
from tasks.plan import current_plan
from tasks.stage import StageContext, stage
from tasks.store import Artifact, Store


@stage(kind="report", runs="models.judge_accuracy:measure", fan_out="chunks")
def judge_accuracy(config: JudgeAccuracyConfig, policy: Artifact | None = None, *, seed: int, context: StageContext) -> Artifact:
    """Judge accuracy: agreement with people, position bias and length bias, beside judges that read nothing."""
    return context.run(config, seed, policy=policy, cache=answer_cache())


def publish(report: Artifact) -> None:
    """Show the table in Prefect and MLflow, whether it was computed now or before."""
    pipeline = tracking.current_pipeline()
    if current_plan() is not None or pipeline is None:
        return
    content = json.loads((Store(home() / "store").path(report) / "judge_accuracy.json").read_text(encoding="utf-8"))
    pipeline.table(content["cells"], content["markdown"], "judge-accuracy")
