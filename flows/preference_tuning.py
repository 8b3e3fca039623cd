"""Learning from preferences that people have already given: a reward model and DPO on the same pairs.

base_model -> curate -> { reward_model, dpo } -> evaluate -> comparison

With collect the pairs are those of the model's own answers, or given ones judged anew, before either learns from them:
base_model -> curate -> (reward_model[judge] ->) collect_preferences -> { reward_model, dpo } -> evaluate -> comparison
"""

from prefect import flow
from pydantic import Field

from flows.judge import RewardFlowConfig, judge
from flows.people import asking
from flows.preferences import prefer
from models.configs.dpo import DPOConfig
from models.configs.evaluation import ComparisonConfig, EvaluateConfig
from models.configs.labelling import LabellingConfig
from models.configs.preferences import PreferencesConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.dpo import dpo
from tasks.reward_model import reward_model
from tasks.store import Artifact
from tasks.tracking import pipeline


class PreferenceTuningConfig(RewardFlowConfig):
    """Settings of every stage of the flow ``preference_tuning``."""

    collect: bool = Field(
        default=False,
        description="Collect preferences first, and learn from those; a judge of kind reward_model is trained on the given pairs before.",
    )
    preferences: PreferencesConfig = Field(default_factory=PreferencesConfig, description="Preference collection, with collect.")
    labelling: LabellingConfig = Field(default_factory=LabellingConfig, description="People\'s labels, where a judge is people.")
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
    seed, people = config.seed, asking(config.labelling, config.seed)
    with pipeline("preference_tuning", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        pairs = data
        if config.collect:
            trained = None
            if config.preferences.has("reward_model"):
                trained = reward_model.named("judge")(config.reward_model, base, data, seed=seed)
            pairs = prefer(config.preferences, {"base": base}, data, trained, seed=seed, ask_people=people)
        reward = reward_model(config.reward_model, base, pairs, seed=seed)
        policies = {"base": base, "dpo": dpo(config.dpo, base, pairs, seed=seed)}
        return judge(config, policies, base, data, reward, pairs)
