"""Settings of decoding that a reward guides."""

from typing import Literal, get_args

from pydantic import Field, model_validator

from models.configs.base import StageConfig
from models.configs.checkpointing import ResumeConfig
from models.configs.optimisation import OptimConfig
from models.configs.sampling import SamplingConfig

Mode = Literal["none", "args", "pargs", "cd", "farma", "cards", "best_of_n"]
MODES: tuple[Mode, ...] = get_args(Mode)
SCORER_OF = {"pargs": "reward_model with loss = prefix_bradley_terry", "cd": "prefix_value", "farma": "token_reward"}


class GuidanceConfig(StageConfig):
    """How a reward takes part in sampling. The rewards are normalised: mean 0 and deviation 1 on the data they were trained on."""

    mode: Mode = Field(
        default="none",
        description="none: the policy alone. args, pargs, cd: next tokens scored by a reward model, one trained on prefixes, a value "
        "function. farma: one reward a token of the vocabulary. cards: segments accepted or drawn again. best_of_n: the best of samples.",
    )
    weight: float = Field(
        default=1.0,
        ge=0,
        description="args, pargs, cd, farma: weight w = 1/beta of the reward beside the log-probability, in nats a unit.",
    )
    top_k: int = Field(
        default=10, ge=0, description="args, pargs, cd, farma: the policy's most likely tokens, among which the reward chooses; 0 = all."
    )
    samples: int = Field(default=16, ge=2, description="best_of_n: completions sampled for each answer.")
    entropy_nats: float = Field(default=3.0, ge=0, description="cards: a segment ends before a token of which the policy is less certain.")
    goal: float = Field(default=1.0, description="cards: reward at which a segment is accepted for sure, at the longest completion.")
    goal_start: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="cards: at the prompt the goal is this share of the way from the prompt's reward; 1 = constant.",
    )
    goal_width: float = Field(
        default=0.7, gt=0, description="cards: at this distance below the goal, in units of reward, a segment is accepted one time in e."
    )
    max_tries: int = Field(
        default=20, ge=1, description="cards: after this many rejected segments in a row the best of them is taken, and counted."
    )


class GuidedEvaluationConfig(StageConfig):
    """Reward and time of one way of decoding on held-out prompts."""

    guidance: GuidanceConfig = Field(default_factory=GuidanceConfig, description="How a reward guides decoding.")
    prompts: int = Field(default=100, ge=0, description="Held-out prompts to answer; 0 = all.")
    samples_per_prompt: int = Field(default=1, ge=1, description="Answers to each prompt.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How tokens are sampled; temperature 0 takes the best.")
    chunk_prompts: int = Field(default=128, ge=1, description="Prompts between two saves.")
    micro_batch_tokens: int = Field(default=8192, ge=16, description="Tokens of a forward pass that scores answers.")

    @model_validator(mode="after")
    def _noise(self) -> "GuidedEvaluationConfig":
        if self.sampling.temperature == 0 and self.guidance.mode in ("cards", "best_of_n"):
            raise ValueError(f"{self.guidance.mode} chooses among samples, and at sampling.temperature 0 all are equal: use 1.0")
        return self


class PrefixValueConfig(StageConfig):
    """Regression of the final reward on every prefix of the policy's own completions."""

    prompts: int = Field(default=0, ge=0, description="Training prompts to answer; 0 = all.")
    samples_per_prompt: int = Field(default=4, ge=1, description="Completions of each prompt.")
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How completions are sampled.")
    chunk_prompts: int = Field(default=64, ge=1, description="Prompts sampled between two saves.")
    epochs: float = Field(default=1.0, gt=0, description="Passes over the completions.")
    batch_size: int = Field(default=32, ge=1, description="Completions an update.")
    max_updates: int = Field(default=0, ge=0, description="Stop after this many optimiser updates; 0 = after the epochs.")
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=1e-5), description="Optimiser.")
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    max_tokens: int = Field(
        default=1024, ge=8, description="Prompts with a completion longer than this, in tokens, are left out and counted."
    )
    checkpoint: ResumeConfig = Field(default_factory=ResumeConfig, description="How often to save for resume.")


class TokenRewardConfig(StageConfig):
    """A reward for every next token, from preference pairs; the reward of a prefix is that of its best continuation."""

    epochs: float = Field(default=1.0, gt=0, description="Passes over the pairs; each batch makes two updates, one for each loss.")
    batch_size: int = Field(default=32, ge=1, description="Pairs an update.")
    max_updates: int = Field(default=0, ge=0, description="Stop after this many optimiser updates; 0 = after the epochs.")
    min_chance: float = Field(
        default=1e-3,
        ge=0,
        lt=1,
        description="The best continuation is sought among tokens to which the policy gives at least this probability, and the one in the "
        "data: scores of tokens that no data shows are guesses, and a maximum picks the wrongest. 0 = among all tokens, as published.",
    )
    optim: OptimConfig = Field(default_factory=lambda: OptimConfig(learning_rate=1e-5), description="Optimiser.")
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    max_tokens: int = Field(
        default=1024, ge=8, description="Pairs longer than this, in tokens with both completions, are left out and counted."
    )
    checkpoint: ResumeConfig = Field(default_factory=ResumeConfig, description="How often to save for resume.")


class DecodingComparisonConfig(StageConfig):
    """The table of ways to decode."""

    note: str = Field(default="", description="What the line below the table says besides.")
