"""DeepSeek-R1-Zero: reinforcement learning on the base model itself, without supervised fine-tuning.

base_model -> curate -> grpo on the verifier -> evaluate -> comparison

Source: DeepSeek-AI 2025, "DeepSeek-R1: Incentivizing reasoning capability in LLMs via reinforcement learning", section 2.2.
"""

from prefect import flow
from pydantic import Field

from flows.judge import FlowConfig, judge
from models.configs.evaluation import ComparisonConfig
from models.configs.grpo import GRPOConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.grpo import grpo
from tasks.store import Artifact
from tasks.tracking import pipeline


class R1ZeroConfig(FlowConfig):
    """Settings of every stage of the flow ``r1_zero``."""

    grpo: GRPOConfig = Field(default_factory=GRPOConfig, description="GRPO on the verifier, from the base model.")
    comparison: ComparisonConfig = Field(default_factory=lambda: ComparisonConfig(baseline="base"), description="The table at the end.")


@flow(name="r1_zero")
def r1_zero(config: R1ZeroConfig) -> Artifact:
    """Reinforce the base model with a verifier.

    Args:
        config: settings of every stage.
    """
    seed = config.seed
    with pipeline("r1_zero", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        reinforced = grpo(config.grpo, base, data, seed=seed)
        return judge(config, {"base": base, "grpo": reinforced}, base, data)
