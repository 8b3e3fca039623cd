"""Llama 2-Chat: rounds of fresh comparisons, a reward model on them and rejection sampling, and PPO after the last round.

base_model -> curate -> sft -> rounds of { collect_preferences -> reward_model -> rejection_sampling } -> ppo -> evaluate -> comparison

Each round asks the newest policy, so that the reward model is never far from what it judges. The paper's reward model also sees the
comparisons of earlier rounds; here each is trained on those of its own round.

Source: Touvron et al. 2023, "Llama 2: Open foundation and fine-tuned chat models", figure 4 and section 3.2.3.
"""

from prefect import flow
from pydantic import Field

from flows.judge import RewardFlowConfig, judge
from flows.people import asking
from flows.preferences import prefer
from models.configs.labelling import LabellingConfig
from models.configs.ppo import PPOConfig
from models.configs.preferences import PreferencesConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sft import SFTConfig
from tasks.base_model import base_model
from tasks.curate import curate
from tasks.ppo import ppo
from tasks.rejection_sampling import rejection_sampling
from tasks.reward_model import reward_model
from tasks.sft import sft
from tasks.store import Artifact
from tasks.tracking import pipeline


class Llama2Config(RewardFlowConfig):
    """Settings of every stage of the flow ``llama2``."""

    rounds: int = Field(default=2, ge=1, le=16, description="Rounds of comparisons, reward modelling and rejection sampling before PPO.")
    sft: SFTConfig = Field(default_factory=SFTConfig, description="Supervised fine-tuning.")
    preferences: PreferencesConfig = Field(default_factory=PreferencesConfig, description="Each round: samples of the newest policy.")
    labelling: LabellingConfig = Field(default_factory=LabellingConfig, description="People\'s labels, where a judge is people.")
    reward_model: RewardModelConfig = Field(default_factory=RewardModelConfig, description="Each round: a reward model from them.")
    rejection_sampling: RejectionSamplingConfig = Field(
        default_factory=RejectionSamplingConfig, description="Each round: imitate the samples that it ranks best."
    )
    ppo: PPOConfig = Field(default_factory=PPOConfig, description="PPO from the last round's policy, against its reward model.")


@flow(name="llama2")
def llama2(config: Llama2Config) -> Artifact:
    """Fine-tune, repeat comparisons, reward model and rejection sampling, end with PPO.

    Args:
        config: settings of every stage.
    """
    seed, people = config.seed, asking(config.labelling, config.seed)
    with pipeline("llama2", config):
        base = base_model(config.base_model, seed=seed)
        data = curate(config.curate, base, seed=seed)
        policy = supervised = sft(config.sft, base, data, seed=seed)
        policies = {"base": base, "sft": supervised}
        for name in [f"round {number}" for number in range(1, config.rounds + 1)]:
            preferences = prefer(config.preferences, {"current": policy, **policies}, data, seed=seed, name=name, ask_people=people)
            reward = reward_model.named(name)(config.reward_model, policy, preferences, seed=seed)
            policy = rejection_sampling.named(name)(config.rejection_sampling, policy, preferences, reward, seed=seed)
            policies[name] = policy
        policies["ppo"] = ppo(config.ppo, policy, data, reward, seed=seed)
        return judge(config, policies, supervised, data, reward, preferences)
