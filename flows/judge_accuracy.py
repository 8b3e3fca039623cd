"""How well an AI judge agrees with people, and what it likes beside quality.

base_model -> judge_accuracy
"""

from prefect import flow
from pydantic import Field

from flows.forms import FormConfig
from models.configs.base_model import BaseModelConfig
from models.configs.judge_accuracy import JudgeAccuracyConfig
from tasks.base_model import base_model
from tasks.judge_accuracy import judge_accuracy as measured
from tasks.judge_accuracy import publish
from tasks.store import Artifact
from tasks.tracking import pipeline


class JudgeAccuracyFlowConfig(FormConfig):
    """Settings of the flow ``judge_accuracy``."""

    seed: int = Field(default=0, ge=0, description="Seed of rows, principles and intervals.")
    base_model: BaseModelConfig = Field(
        default_factory=BaseModelConfig, description="The judge, where judge.backend = policy names no model."
    )
    measure: JudgeAccuracyConfig = Field(description="The sets, and the judge.")


@flow(name="judge_accuracy")
def judge_accuracy(config: JudgeAccuracyFlowConfig) -> Artifact:
    """Measure a judge on pairs of answers that people compared, beside judges that read nothing.

    Args:
        config: settings of every stage.
    """
    judge = config.measure.judge
    with pipeline("judge_accuracy", config):
        own = judge.backend == "policy" and not judge.model
        report = measured(config.measure, base_model(config.base_model, seed=config.seed) if own else None, seed=config.seed)
        publish(report)
        return report
