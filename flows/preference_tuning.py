"""Learning from preferences that people have already given: a reward model and DPO on the same pairs.

base_model -> curate -> { reward_model, dpo } -> evaluate -> comparison
"""

from prefect import flow
from pydantic import Field

from flows.judge import FlowConfig, judge
from models.configs.dpo import DPOConfig
from models.configs.evaluation import ComparisonConfig, EvaluateConfig
from models.configs.reward_model import RewardModelConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.dpo import dpo
from tasks.reward_model import reward_model
from tasks.store import Artifact
from tasks.tracking import pipeline


class PreferenceTuningConfig(FlowConfig):
    """Settings of every stage of the flow ``preference_tuning``."""

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
        return judge(config, policies, base, data, reward)
