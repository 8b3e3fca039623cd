"""Constitutional AI: the policy revises its own answers by principles, imitates the revisions, and learns from pairs that principles judge.

base_model -> curate -> revise -> sft -> collect_preferences -> reward_model -> { dpo, ppo } -> evaluate -> comparison

The judge of the pairs is the base model, or the model that the judge in ``preferences`` names. The evaluation asks the reward model, which
is trained on its judgements: it says how far a policy has gone where the judge wanted it, not how people see it.

Source: Bai et al. 2022, "Constitutional AI: Harmlessness from AI feedback".
"""

from typing import Literal

from prefect import flow
from pydantic import Field

from flows.judge import RewardFlowConfig, judge
from flows.people import asking
from flows.preferences import prefer
from models.configs.ai_judge import AIJudgeConfig
from models.configs.constitution import ReviseConfig
from models.configs.dpo import DPOConfig
from models.configs.evaluation import EvaluateConfig
from models.configs.labelling import LabellingConfig
from models.configs.ppo import PPOConfig
from models.configs.preferences import JudgeConfig, PreferencesConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sft import SFTConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.dpo import dpo
from tasks.ppo import ppo
from tasks.revise import revise
from tasks.reward_model import reward_model
from tasks.sft import sft
from tasks.store import Artifact
from tasks.tracking import pipeline


def _by_principles() -> JudgeConfig:
    return JudgeConfig(kind="language_model", name="constitution", ai=AIJudgeConfig(constitution="packaged"))


class ConstitutionalConfig(RewardFlowConfig):
    """Settings of every stage of the flow ``constitutional``."""

    revise: ReviseConfig = Field(default_factory=ReviseConfig, description="Critique and revision.")
    sft: SFTConfig = Field(default_factory=SFTConfig, description="Fine-tuning on the revisions.")
    preferences: PreferencesConfig = Field(
        default_factory=lambda: PreferencesConfig(judges=[_by_principles()]), description="Pairs of fresh answers, judged by principles."
    )
    labelling: LabellingConfig = Field(default_factory=LabellingConfig, description="People's labels, where a judge is people.")
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig, description="Reward modelling on these pairs.")
    methods: Literal["dpo", "ppo", "both"] = Field(default="dpo", description="How the policy learns from them; the paper uses PPO.")
    dpo: DPOConfig = Field(default_factory=DPOConfig, description="DPO.")
    ppo: PPOConfig = Field(default_factory=PPOConfig, description="PPO against the reward model.")
    evaluate: EvaluateConfig = Field(
        default_factory=lambda: EvaluateConfig(judge="reward_model"), description="Evaluation on held-out prompts."
    )


@flow(name="constitutional")
def constitutional(config: ConstitutionalConfig) -> Artifact:
    """Revise, fine-tune, collect AI feedback, train a reward model, post-train, compare.

    Args:
        config: settings of every stage.
    """
    seed, people = config.seed, asking(config.labelling, config.seed)
    with pipeline("constitutional", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        revisions = revise(config.revise, base, data, seed=seed)
        policy = sft(config.sft, base, revisions, seed=seed)
        writers = {"sft": policy, "base": base}
        preferences = prefer(config.preferences, writers, revisions, seed=seed, ask_people=people, judge_model=base)
        reward = reward_model(config.reward_model, policy, preferences, seed=seed)
        policies = {"base": base, "sft": policy}
        if config.methods != "ppo":
            policies["dpo"] = dpo(config.dpo, policy, preferences, seed=seed)
        if config.methods != "dpo":
            policies["ppo"] = ppo(config.ppo, policy, revisions, reward, seed=seed)
        return judge(config, policies, base, data, reward, preferences)
