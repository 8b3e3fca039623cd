"""InstructGPT: demonstrations, comparisons of the tuned model's own answers, a reward model, PPO against it.

base_model -> curate -> sft -> collect_preferences -> reward_model -> ppo -> evaluate -> comparison

Source: Ouyang et al. 2022, "Training language models to follow instructions with human feedback", figure 2.
"""

from prefect import flow
from pydantic import Field

from flows.judge import RewardFlowConfig, judge
from flows.people import asking
from flows.preferences import prefer
from models.configs.labelling import LabellingConfig
from models.configs.ppo import PPOConfig
from models.configs.preferences import PreferencesConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sft import SFTConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.ppo import ppo
from tasks.reward_model import reward_model
from tasks.sft import sft
from tasks.store import Artifact
from tasks.tracking import pipeline


class InstructGPTConfig(RewardFlowConfig):
    """Settings of every stage of the flow ``instructgpt``."""

    sft: SFTConfig = Field(default_factory=SFTConfig, description="Step 1: a supervised policy.")
    preferences: PreferencesConfig = Field(default_factory=PreferencesConfig, description="Step 2: comparisons of its answers.")
    labelling: LabellingConfig = Field(default_factory=LabellingConfig, description="People\'s labels, where a judge is people.")
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig, description="Step 2: a reward model from them.")
    ppo: PPOConfig = Field(default_factory=PPOConfig, description="Step 3: PPO against it; the critic starts from its weights.")


@flow(name="instructgpt")
def instructgpt(config: InstructGPTConfig) -> Artifact:
    """Demonstrations, comparisons, PPO: the three steps of InstructGPT.

    Args:
        config: settings of every stage.
    """
    seed, people = config.seed, asking(config.labelling, config.seed)
    with pipeline("instructgpt", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        supervised = sft(config.sft, base, data, seed=seed)
        preferences = prefer(config.preferences, {"sft": supervised, "base": base}, data, seed=seed, ask_people=people)
        reward = reward_model(config.reward_model, supervised, preferences, seed=seed)
        optimised = ppo(config.ppo, supervised, data, reward, seed=seed)
        return judge(config, {"base": base, "sft": supervised, "ppo": optimised}, supervised, data, reward, preferences)
