"""Reinforcement learning from verifiable rewards: supervised fine-tuning, then GRPO against the data's own verifier.

base_model -> curate -> sft -> grpo -> evaluate -> comparison
"""

from prefect import flow
from pydantic import Field

from flows.judge import FlowConfig, judge
from models.configs.grpo import GRPOConfig
from models.configs.sft import SFTConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.grpo import grpo
from tasks.sft import sft
from tasks.store import Artifact
from tasks.tracking import pipeline


class RLVRConfig(FlowConfig):
    """Settings of every stage of the flow ``rlvr``."""

    sft: SFTConfig = Field(default_factory=SFTConfig, description="Supervised fine-tuning.")
    grpo: GRPOConfig = Field(default_factory=GRPOConfig, description="GRPO on the verifier.")


@flow(name="rlvr")
def rlvr(config: RLVRConfig) -> Artifact:
    """Curate, fine-tune, reinforce with a verifier, compare.

    Args:
        config: settings of every stage.
    """
    seed = config.seed
    with pipeline("rlvr", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        tuned = sft(config.sft, base, data, seed=seed)
        policies = {"base": base, "sft": tuned, "grpo": grpo(config.grpo, tuned, data, seed=seed)}
        return judge(config, policies, tuned, data)
