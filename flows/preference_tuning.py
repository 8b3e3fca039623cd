"""Learning from preferences that people have already given: a reward model and DPO on the same pairs.

base_model -> curate -> { reward_model, dpo } -> evaluate -> comparison
"""

from prefect import flow
from pydantic import Field

from data.configs import CurateConfig
from models.configs.base import StageConfig
from models.configs.base_model import BaseModelConfig
from models.configs.dpo import DPOConfig
from models.configs.evaluation import ComparisonConfig, EvaluateConfig
from models.configs.reward_model import RewardModelConfig
from tasks.base_model import base_model
from tasks.comparison import comparison, publish
from tasks.curate import curate
from tasks.dpo import dpo
from tasks.evaluate import evaluate
from tasks.reward_model import reward_model
from tasks.store import Artifact
from tasks.tracking import pipeline


class PreferenceTuningConfig(StageConfig):
    """Settings of every stage of the flow ``preference_tuning``."""

    seed: int = Field(default=0, ge=0, description="Seed of every stage: data split, sampling, order of examples.")
    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig, description="Which model everything starts from.")
    curate: CurateConfig = Field(default_factory=CurateConfig, description="Data: sources, splits, filters.")
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig, description="Reward modelling.")
    dpo: DPOConfig = Field(default_factory=DPOConfig, description="DPO.")
    evaluate: EvaluateConfig = Field(
        default_factory=lambda: EvaluateConfig(judge="reward_model"), description="Evaluation on held-out prompts."
    )
    comparison: ComparisonConfig = Field(default_factory=lambda: ComparisonConfig(baseline="base"), description="The table at the end.")


@flow(name="preference_tuning")
def preference_tuning(config: PreferenceTuningConfig) -> Artifact:
    """Train a reward model and a DPO policy on given pairs, compare the policy with the base model as the reward model sees them.

    Args:
        config: settings of every stage.
    """
    seed = config.seed
    with pipeline("preference_tuning", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        reward = reward_model(config.reward_model, base, data, seed=seed)
        policies = {"base": base, "dpo": dpo(config.dpo, base, data, seed=seed)}
        evaluations = {
            name: evaluate.named(name)(config.evaluate, candidate, base, data, reward, seed=seed) for name, candidate in policies.items()
        }
        report = comparison(config.comparison, evaluations, seed=seed)
        publish(report)
    return report
