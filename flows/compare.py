"""Every method of the field from one SFT policy, on the same data and under the same judgement.

base_model -> curate -> sft -> collect_preferences -> { reward_model, preference_model }
    -> { rejection sampling, policy gradients, preference optimisation }, each in its variants -> evaluate -> comparison

A family is a mapping from the name that a variant has in the table to its settings; an empty mapping leaves the family out.
"""

from collections.abc import Mapping

from prefect import flow
from pydantic import Field

from flows.judge import RewardFlowConfig, judge
from flows.people import asking
from flows.preferences import prefer
from models.configs.base import StageConfig
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.kto import KTOConfig
from models.configs.kwise_dpo import KWiseDPOConfig
from models.configs.labelling import LabellingConfig
from models.configs.nash_md import NashMDConfig
from models.configs.online_dpo import OnlineDPOConfig
from models.configs.online_rejection_sampling import OnlineRejectionSamplingConfig
from models.configs.ppo import PPOConfig
from models.configs.preference_model import PreferenceModelConfig
from models.configs.preferences import PreferencesConfig
from models.configs.reinforce import ActorCriticConfig, ReinforceConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.sft import SFTConfig
from tasks.actor_critic import actor_critic
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.dpo import dpo
from tasks.grpo import grpo
from tasks.kto import kto
from tasks.kwise_dpo import kwise_dpo
from tasks.nash_md import nash_md
from tasks.online_dpo import online_dpo
from tasks.online_rejection_sampling import online_rejection_sampling
from tasks.ppo import ppo
from tasks.preference_model import preference_model
from tasks.reinforce import reinforce
from tasks.rejection_sampling import rejection_sampling
from tasks.reward_model import reward_model
from tasks.sft import sft
from tasks.stage import Stage
from tasks.store import Artifact
from tasks.tracking import pipeline


class CompareConfig(RewardFlowConfig):
    """Settings of every stage of the flow ``compare``; of each family, one entry a row of the table."""

    sft: SFTConfig = Field(default_factory=SFTConfig, description="Supervised fine-tuning: where every method starts.")
    preferences: PreferencesConfig = Field(default_factory=PreferencesConfig, description="Preference collection.")
    labelling: LabellingConfig = Field(default_factory=LabellingConfig, description="People\'s labels, where a judge is people.")
    preference_model: PreferenceModelConfig = Field(
        default_factory=PreferenceModelConfig, description="Preference model, trained where a variant of nash_md asks for it."
    )
    rejection_sampling: dict[str, RejectionSamplingConfig] = Field(default_factory=dict, description="Rejection sampling.")
    online_rejection_sampling: dict[str, OnlineRejectionSamplingConfig] = Field(default_factory=dict, description="The same in rounds.")
    reinforce: dict[str, ReinforceConfig] = Field(default_factory=dict, description="REINFORCE with its baselines, RLOO among them.")
    actor_critic: dict[str, ActorCriticConfig] = Field(default_factory=dict, description="Policy gradients with a learned value.")
    ppo: dict[str, PPOConfig] = Field(default_factory=dict, description="PPO.")
    grpo: dict[str, GRPOConfig] = Field(default_factory=dict, description="GRPO and its variants.")
    dpo: dict[str, DPOConfig] = Field(default_factory=dict, description="DPO and its relatives.")
    kwise_dpo: dict[str, KWiseDPOConfig] = Field(default_factory=dict, description="DPO on rankings.")
    kto: dict[str, KTOConfig] = Field(default_factory=dict, description="KTO.")
    online_dpo: dict[str, OnlineDPOConfig] = Field(default_factory=dict, description="DPO on fresh pairs.")
    nash_md: dict[str, NashMDConfig] = Field(default_factory=dict, description="Nash-MD.")


@flow(name="compare")
def compare(config: CompareConfig) -> Artifact:
    """Fine-tune, collect preferences, train the judges, post-train by every method, compare.

    Args:
        config: settings of every stage.
    """
    seed, people = config.seed, asking(config.labelling, config.seed)
    with pipeline("compare", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        policy = sft(config.sft, base, data, seed=seed)
        preferences = prefer(config.preferences, {"sft": policy, "base": base}, data, seed=seed, ask_people=people)
        reward = reward_model(config.reward_model, policy, preferences, seed=seed)

        def each(stage: Stage, family: Mapping[str, StageConfig], *inputs: Artifact) -> dict[str, Artifact]:
            return {name: stage.named(name)(settings, policy, *inputs, seed=seed) for name, settings in family.items()}

        policies = {"base": base, "sft": policy}
        policies |= each(rejection_sampling, config.rejection_sampling, preferences, reward)
        policies |= each(online_rejection_sampling, config.online_rejection_sampling, data, reward)
        policies |= each(reinforce, config.reinforce, data, reward)
        policies |= each(actor_critic, config.actor_critic, data, reward)
        policies |= each(ppo, config.ppo, data, reward)
        policies |= each(grpo, config.grpo, data, reward)
        policies |= each(dpo, config.dpo, preferences)
        policies |= each(kwise_dpo, config.kwise_dpo, preferences)
        policies |= each(kto, config.kto, preferences)
        policies |= each(online_dpo, config.online_dpo, data, reward)
        for name, settings in config.nash_md.items():
            judge_of_duels = reward
            if settings.reward == "preference_model":
                judge_of_duels = preference_model(config.preference_model, policy, preferences, seed=seed)
            policies[name] = nash_md.named(name)(settings, policy, data, judge_of_duels, seed=seed)
        return judge(config, policies, policy, data, reward, preferences)
