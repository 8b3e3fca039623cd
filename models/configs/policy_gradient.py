"""What the on-policy methods share: how they roll out and how they update."""

from pydantic import Field, model_validator

from models.configs.checkpointing import CheckpointConfig
from models.configs.lora import LoraSettings
from models.configs.optimisation import OptimConfig
from models.configs.rewards import ScoredConfig
from models.configs.sampling import SamplingConfig


class PolicyGradientConfig(ScoredConfig):
    """Sample from the policy, score, update; again and again."""

    iterations: int = Field(default=20, ge=1, description="Rounds of sampling and updating.")
    prompts_per_iteration: int = Field(default=16, ge=1, description="Prompts sampled in a round.")
    samples_per_prompt: int = Field(default=4, ge=1, description="Completions of each prompt.")
    epochs: int = Field(default=1, ge=1, description="Passes over a round's completions.")
    minibatches: int = Field(default=1, ge=1, description="Optimiser updates a pass; divides prompts_per_iteration.")
    missing_eos_penalty: float = Field(
        default=0.0, ge=0, description="Subtracted from the reward of a completion that was cut off at its longest."
    )
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How completions are sampled.")
    optim: OptimConfig = Field(
        default_factory=lambda: OptimConfig(learning_rate=2e-6, schedule="constant"), description="Optimiser of the policy."
    )
    micro_batch_tokens: int = Field(default=4096, ge=16, description="Tokens of a forward and backward pass.")
    lora: LoraSettings = Field(default_factory=LoraSettings, description="Low-rank adapters instead of all weights of the policy.")
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, description="What to save for resume, and to keep of the way.")

    @model_validator(mode="after")
    def _rollouts(self) -> "PolicyGradientConfig":
        if self.prompts_per_iteration % self.minibatches:
            raise ValueError(f"minibatches {self.minibatches} must divide prompts_per_iteration {self.prompts_per_iteration}")
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature 0 is greedy: all samples of a prompt are equal and teach nothing; use 1.0")
        if self.sampling.top_k or self.sampling.top_p < 1:
            raise ValueError(
                f"sampling.top_k {self.sampling.top_k} and top_p {self.sampling.top_p} cut the distribution "
                "that the update assumes; use 0 and 1.0"
            )
        return self

    @property
    def updates_per_iteration(self) -> int:
        """Optimiser updates of one round."""
        return self.epochs * self.minibatches


class ClippedConfig(PolicyGradientConfig):
    """Several updates a round, kept near the policy that sampled by a clipped probability ratio."""

    clip: float = Field(default=0.2, gt=0, lt=1, description="Probability ratios outside 1 +- clip earn nothing more.")
    entropy_coefficient: float = Field(
        default=0.0, ge=0, description="Weight of the policy's mean entropy per token, in nats, that is added to what is maximised."
    )
