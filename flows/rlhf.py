"""The whole of RLHF: from a base model to four post-trained policies and one table.

base_model -> curate -> sft -> collect_preferences -> reward_model -> { rejection_sampling, ppo, grpo, dpo } -> evaluate -> comparison
"""

from typing import Literal

from prefect import flow
from pydantic import Field

from flows.judge import RewardFlowConfig, judge
from flows.people import asking
from flows.preferences import prefer
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.labelling import LabellingConfig
from models.configs.ppo import PPOConfig
from models.configs.preferences import PreferencesConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.sft import SFTConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.dpo import dpo
from tasks.grpo import grpo
from tasks.ppo import ppo
from tasks.rejection_sampling import rejection_sampling
from tasks.reward_model import reward_model
from tasks.sft import sft
from tasks.store import Artifact
from tasks.tracking import pipeline


class RLHFConfig(RewardFlowConfig):
    """Settings of every stage of the flow ``rlhf``."""

    methods: list[Literal["rejection_sampling", "ppo", "grpo", "dpo"]] = Field(
        default_factory=lambda: ["rejection_sampling", "ppo", "grpo", "dpo"], description="Methods to post-train with and compare."
    )
    sft: SFTConfig = Field(default_factory=SFTConfig, description="Supervised fine-tuning.")
    preferences: PreferencesConfig = Field(default_factory=PreferencesConfig, description="Preference collection.")
    labelling: LabellingConfig = Field(default_factory=LabellingConfig, description="People\'s labels, where a judge is people.")
    rejection_sampling: RejectionSamplingConfig = Field(default_factory=RejectionSamplingConfig, description="Rejection sampling.")
    ppo: PPOConfig = Field(default_factory=PPOConfig, description="PPO.")
    grpo: GRPOConfig = Field(default_factory=GRPOConfig, description="GRPO.")
    dpo: DPOConfig = Field(default_factory=DPOConfig, description="DPO.")


@flow(name="rlhf")
def rlhf(config: RLHFConfig) -> Artifact:
    """Curate, fine-tune, collect preferences, train a reward model, post-train in four ways, compare.

    Args:
        config: settings of every stage.
    """
    seed, people = config.seed, asking(config.labelling, config.seed)
    with pipeline("rlhf", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        policy = sft(config.sft, base, data, seed=seed)
        preferences = prefer(config.preferences, {"sft": policy, "base": base}, data, seed=seed, ask_people=people)
        reward = reward_model(config.reward_model, policy, preferences, seed=seed)
        grpo_reward = reward if "reward_model" in config.grpo.reward_sources else None
        methods = {
            "rejection_sampling": lambda: rejection_sampling(config.rejection_sampling, policy, preferences, reward, seed=seed),
            "ppo": lambda: ppo(config.ppo, policy, data, reward, seed=seed),
            "grpo": lambda: grpo(config.grpo, policy, data, grpo_reward, seed=seed),
            "dpo": lambda: dpo(config.dpo, policy, preferences, seed=seed),
        }
        trained = {name: train() for name, train in methods.items() if name in config.methods}
        return judge(config, {"base": base, "sft": policy, **trained}, policy, data, reward, preferences)
