"""Guided decoding against training: what a reward brings at sampling time, and what it costs.

base_model -> curate -> sft -> collect_preferences -> { reward_model, reward_model on prefixes, token_reward } -> prefix_value
  -> guided_evaluation of { the policy alone, ARGS, PARGS, CD, FaRMA, CARDS, best-of-N, DPO, PPO } -> decoding_comparison
"""

from typing import Any

from prefect import flow
from pydantic import Field, model_validator

from data.configs import CurateConfig
from flows.forms import FormConfig, unfolded
from flows.people import asking
from flows.preferences import prefer
from models.configs.base_model import BaseModelConfig
from models.configs.dpo import DPOConfig
from models.configs.guidance import (
    DecodingComparisonConfig,
    GuidanceConfig,
    GuidedEvaluationConfig,
    PrefixValueConfig,
    TokenRewardConfig,
)
from models.configs.labelling import LabellingConfig
from models.configs.ppo import PPOConfig
from models.configs.preferences import PreferencesConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sft import SFTConfig
from tasks.base_model import base_model
from tasks.comparison import publish
from tasks.curate import curate
from tasks.decoding_comparison import decoding_comparison
from tasks.dpo import dpo
from tasks.guided_evaluation import guided_evaluation
from tasks.ppo import ppo
from tasks.prefix_value import prefix_value
from tasks.reward_model import reward_model
from tasks.sft import sft
from tasks.store import Artifact
from tasks.token_reward import token_reward
from tasks.tracking import pipeline

GUIDED = ("args", "pargs", "cd", "farma", "cards", "best_of_n")


class DecodingConfig(FormConfig):
    """Settings of every stage of the flow ``decoding``."""

    seed: int = Field(default=0, ge=0, description="Seed of every stage: data split, sampling, order of examples.")
    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig, description="Which model everything starts from.")
    curate: CurateConfig = Field(default_factory=CurateConfig, description="Data: sources, splits, filters.")
    sft: SFTConfig = Field(default_factory=SFTConfig, description="Supervised fine-tuning.")
    preferences: PreferencesConfig = Field(default_factory=PreferencesConfig, description="Preference collection.")
    labelling: LabellingConfig = Field(default_factory=LabellingConfig, description="People\'s labels, where a judge is people.")
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig, description="Reward model of whole completions.")
    prefix_reward: RewardModelConfig = Field(
        default_factory=lambda: RewardModelConfig(loss="prefix_bradley_terry"), description="Reward model of prefixes, for PARGS."
    )
    prefix_value: PrefixValueConfig = Field(default_factory=PrefixValueConfig, description="Value of prefixes, for CD.")
    token_reward: TokenRewardConfig = Field(default_factory=TokenRewardConfig, description="Rewards of next tokens, for FaRMA.")
    dpo: DPOConfig = Field(default_factory=DPOConfig, description="DPO.")
    ppo: PPOConfig = Field(default_factory=PPOConfig, description="PPO.")
    evaluation: GuidedEvaluationConfig = Field(
        default_factory=GuidedEvaluationConfig, description="Prompts and sampling of every row; its guidance is that of the row."
    )
    args: GuidanceConfig = Field(default_factory=lambda: GuidanceConfig(mode="args"), description="Guidance of ARGS.")
    pargs: GuidanceConfig = Field(default_factory=lambda: GuidanceConfig(mode="pargs"), description="Guidance of PARGS.")
    cd: GuidanceConfig = Field(default_factory=lambda: GuidanceConfig(mode="cd"), description="Guidance of CD.")
    farma: GuidanceConfig = Field(default_factory=lambda: GuidanceConfig(mode="farma"), description="Guidance of FaRMA.")
    cards: GuidanceConfig = Field(default_factory=lambda: GuidanceConfig(mode="cards"), description="Guidance of CARDS.")
    best_of_n: GuidanceConfig = Field(default_factory=lambda: GuidanceConfig(mode="best_of_n"), description="Best of several samples.")
    comparison: DecodingComparisonConfig = Field(default_factory=DecodingComparisonConfig, description="The table at the end.")

    @model_validator(mode="before")
    @classmethod
    def _name_modes(cls, values: Any) -> Any:
        """The settings of a row need not repeat its mode."""
        values = unfolded(values)
        if not isinstance(values, dict):
            return values
        defaults = {"prefix_reward": {"loss": "prefix_bradley_terry"}} | {mode: {"mode": mode} for mode in GUIDED}
        return values | {name: given | values[name] for name, given in defaults.items() if isinstance(values.get(name), dict)}

    @model_validator(mode="after")
    def _modes(self) -> "DecodingConfig":
        for mode in GUIDED:
            found = getattr(self, mode).mode
            if found != mode:
                raise ValueError(f"{mode}.mode is {found!r}: the row {mode} is decoded by {mode}; leave mode out")
        if self.evaluation.guidance != GuidanceConfig():
            raise ValueError("evaluation.guidance is that of each row: set args, pargs, cd, farma, cards or best_of_n instead")
        if self.evaluation.sampling.temperature == 0:
            raise ValueError("evaluation.sampling.temperature 0: cards and best_of_n choose among samples, which are then equal; use 1.0")
        if self.prefix_reward.loss != "prefix_bradley_terry":
            raise ValueError("prefix_reward.loss must be prefix_bradley_terry: the model of whole completions is reward_model")
        return self


@flow(name="decoding")
def decoding(config: DecodingConfig) -> Artifact:
    """From one policy and one reward model: decode in every way, train in two, and print reward and minutes of each.

    Args:
        config: settings of every stage.
    """
    seed, people = config.seed, asking(config.labelling, config.seed)
    with pipeline("decoding", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        policy = sft(config.sft, base, data, seed=seed)
        preferences = prefer(config.preferences, {"sft": policy, "base": base}, data, seed=seed, ask_people=people)
        reward = reward_model(config.reward_model, policy, preferences, seed=seed)
        scorers = {
            "pargs": reward_model.named("prefixes")(config.prefix_reward, policy, preferences, seed=seed),
            "cd": prefix_value(config.prefix_value, policy, data, reward, seed=seed),
            "farma": token_reward(config.token_reward, policy, preferences, seed=seed),
        }
        trained = {"dpo": dpo(config.dpo, policy, preferences, seed=seed), "ppo": ppo(config.ppo, policy, data, reward, seed=seed)}
        settings = {"reference": GuidanceConfig(), **{mode: getattr(config, mode) for mode in GUIDED}}
        settings |= {name: GuidanceConfig() for name in trained}
        evaluations = {
            name: guided_evaluation.named(name)(
                config.evaluation.model_copy(update={"guidance": guidance}),
                trained.get(name, policy),
                policy,
                data,
                reward,
                scorers.get(name),
                seed=seed,
            )
            for name, guidance in settings.items()
        }
        # Measured, so not in the files of an evaluation, whose digest depends on its settings alone.
        seconds = {name: evaluation.meta.get("seconds") for name, evaluation in evaluations.items()}
        report = decoding_comparison(config.comparison, evaluations, seconds)
        publish(report)
    return report
