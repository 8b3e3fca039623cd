"""DeepSeek-R1: a cold start, RL for reasoning, the base model tuned anew on the reasoner's best samples, RL for all purposes.

base_model -> curate -> sft (cold start) -> grpo (reasoning) -> collect_preferences -> reward_model
                                  base_model -> rejection_sampling of those samples -> grpo (alignment) -> evaluate -> comparison

As in the paper the second round of supervised fine-tuning starts from the base model: it takes over what RL has found, without its traces
in the weights. The paper adds conversations that are no reasoning to it; here it sees the reasoner's samples alone.

Source: DeepSeek-AI 2025, "DeepSeek-R1: Incentivizing reasoning capability in LLMs via reinforcement learning", section 2.3.
"""

from prefect import flow
from pydantic import Field

from flows.judge import RewardFlowConfig, judge
from flows.people import asking
from flows.preferences import prefer
from models.configs.evaluation import ComparisonConfig
from models.configs.grpo import GRPOConfig
from models.configs.labelling import LabellingConfig
from models.configs.preferences import PreferencesConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.rewards import RewardComponent
from models.configs.sft import SFTConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.grpo import grpo
from tasks.rejection_sampling import rejection_sampling
from tasks.reward_model import reward_model
from tasks.sft import sft
from tasks.store import Artifact
from tasks.tracking import pipeline


class DeepSeekR1Config(RewardFlowConfig):
    """Settings of every stage of the flow ``deepseek_r1``."""

    cold_start: SFTConfig = Field(default_factory=SFTConfig, description="Few demonstrations, to make the first RL readable.")
    reasoning: GRPOConfig = Field(
        default_factory=lambda: GRPOConfig(
            reward="weighted",
            rewards=(
                RewardComponent(name="accuracy", source="verifier"),
                RewardComponent(name="language", source="language", weight=0.1),
            ),
        ),
        description="First RL: what a verifier can check, and one language.",
    )
    preferences: PreferencesConfig = Field(default_factory=PreferencesConfig, description="Samples of the reasoner.")
    labelling: LabellingConfig = Field(default_factory=LabellingConfig, description="People\'s labels, where a judge is people.")
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig, description="A reward model from pairs of them.")
    rejection_sampling: RejectionSamplingConfig = Field(
        default_factory=lambda: RejectionSamplingConfig(score="judge", min_score=0.99),
        description="Supervised fine-tuning of the base model on the samples that are right.",
    )
    alignment: GRPOConfig = Field(
        default_factory=lambda: GRPOConfig(
            reward="weighted",
            rewards=(
                RewardComponent(name="accuracy", source="verifier"),
                RewardComponent(name="preference", source="reward_model", weight=0.5),
            ),
        ),
        description="Second RL: what a verifier can check, and what people prefer as the reward model sees it.",
    )
    comparison: ComparisonConfig = Field(
        default_factory=lambda: ComparisonConfig(baseline="cold_start"), description="The table at the end."
    )


@flow(name="deepseek_r1")
def deepseek_r1(config: DeepSeekR1Config) -> Artifact:
    """Cold start, RL, rejection sampling from the base model, RL again.

    Args:
        config: settings of every stage.
    """
    seed, people = config.seed, asking(config.labelling, config.seed)
    with pipeline("deepseek_r1", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        cold_start = sft(config.cold_start, base, data, seed=seed)
        reasoner = grpo.named("reasoning")(config.reasoning, cold_start, data, seed=seed)
        writers = {"reasoning": reasoner, "cold_start": cold_start, "base": base}
        samples = prefer(config.preferences, writers, data, seed=seed, ask_people=people)
        reward = reward_model(config.reward_model, reasoner, samples, seed=seed)
        tuned = rejection_sampling(config.rejection_sampling, base, samples, reward, seed=seed)
        aligned = grpo.named("alignment")(config.alignment, tuned, data, reward, seed=seed)
        policies = {"base": base, "cold_start": cold_start, "reasoning": reasoner, "rejection_sampling": tuned, "alignment": aligned}
        return judge(config, policies, cold_start, data, reward, samples)
