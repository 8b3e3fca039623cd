"""Reinforcement learning from verifiable rewards: supervised fine-tuning, then GRPO against the data's own verifier.

base_model -> curate -> sft -> grpo -> evaluate -> comparison
"""

from prefect import flow
from pydantic import Field

from data.configs import CurateConfig
from models.configs.base import StageConfig
from models.configs.base_model import BaseModelConfig
from models.configs.evaluation import ComparisonConfig, EvaluateConfig
from models.configs.grpo import GRPOConfig
from models.configs.sft import SFTConfig
from tasks.base_model import base_model
from tasks.comparison import comparison, publish
from tasks.curate import curate
from tasks.evaluate import evaluate
from tasks.grpo import grpo
from tasks.sft import sft
from tasks.store import Artifact
from tasks.tracking import pipeline


class RLVRConfig(StageConfig):
    """Settings of every stage of the flow ``rlvr``."""

    seed: int = Field(default=0, ge=0, description="Seed of every stage: data split, sampling, order of examples.")
    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig, description="Which model everything starts from.")
    curate: CurateConfig = Field(default_factory=CurateConfig, description="Data: sources, splits, filters.")
    sft: SFTConfig = Field(default_factory=SFTConfig, description="Supervised fine-tuning.")
    grpo: GRPOConfig = Field(default_factory=GRPOConfig, description="GRPO on the verifier.")
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig, description="Evaluation on held-out prompts.")
    comparison: ComparisonConfig = Field(default_factory=ComparisonConfig, description="The table at the end.")


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
        evaluations = {
            name: evaluate.named(name)(config.evaluate, candidate, tuned, data, seed=seed) for name, candidate in policies.items()
        }
        report = comparison(config.comparison, evaluations, seed=seed)
        publish(report)
    return report
