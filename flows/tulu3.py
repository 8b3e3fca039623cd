"""Tülu 3: supervised fine-tuning, DPO on the tuned model's own completions, reinforcement learning from verifiable rewards.

base_model -> curate -> sft -> collect_preferences -> dpo -> grpo on the verifier -> evaluate -> comparison

The paper's last stage is PPO; its successor Tülu 3.1 replaces it by GRPO, as here, which needs no critic.

Source: Lambert et al. 2024, "Tülu 3: Pushing frontiers in open language model post-training", figure 1 and sections 4 to 6.
"""

from prefect import flow
from pydantic import Field

from flows.judge import FlowConfig, judge
from flows.people import asking
from flows.preferences import prefer
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.labelling import LabellingConfig
from models.configs.preferences import PreferencesConfig
from models.configs.sft import SFTConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.dpo import dpo
from tasks.grpo import grpo
from tasks.sft import sft
from tasks.store import Artifact
from tasks.tracking import pipeline


class Tulu3Config(FlowConfig):
    """Settings of every stage of the flow ``tulu3``."""

    sft: SFTConfig = Field(default_factory=SFTConfig, description="Supervised fine-tuning.")
    preferences: PreferencesConfig = Field(default_factory=PreferencesConfig, description="On-policy pairs.")
    labelling: LabellingConfig = Field(default_factory=LabellingConfig, description="People\'s labels, where a judge is people.")
    dpo: DPOConfig = Field(default_factory=DPOConfig, description="DPO on them.")
    grpo: GRPOConfig = Field(default_factory=GRPOConfig, description="GRPO on the verifier.")


@flow(name="tulu3")
def tulu3(config: Tulu3Config) -> Artifact:
    """Fine-tune, prefer, reinforce with a verifier.

    Args:
        config: settings of every stage.
    """
    seed, people = config.seed, asking(config.labelling, config.seed)
    with pipeline("tulu3", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        supervised = sft(config.sft, base, data, seed=seed)
        preferences = prefer(config.preferences, {"sft": supervised, "base": base}, data, seed=seed, ask_people=people)
        preferred = dpo(config.dpo, supervised, preferences, seed=seed)
        reinforced = grpo(config.grpo, preferred, data, seed=seed)
        return judge(config, {"base": base, "sft": supervised, "dpo": preferred, "grpo": reinforced}, supervised, data)
