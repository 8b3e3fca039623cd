"""Settings of best-of-n sampling."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.base import StageConfig
from models.configs.sampling import SamplingConfig


class BestOfNConfig(StageConfig):
    """How much better the best of n samples is, the model unchanged: the baseline of all that trains."""

    pick: Literal["reward_model", "verifier", "callable"] = Field(
        default="reward_model", description="Who picks the best: the reward model, the prompt's own verifier, or a Python function."
    )
    judge_callable: str = Field(
        default="", description="module:function taking (data.records.Prompt, completion text) and returning a number; for pick = callable."
    )
    truth: Literal["verifier", "none"] = Field(
        default="verifier", description="What the picked completion is measured by; none for prompts without right answers."
    )
    samples: int = Field(default=16, ge=2, le=4096, description="Completions of each prompt; the curve goes over n = 1, 2, 4, ... to this.")
    prompts: int = Field(default=0, ge=0, description="Held-out prompts to use; 0 = all.")
    missing_eos_penalty: float = Field(
        default=0.0, ge=0, description="Subtracted from the picking score of a completion that was cut off at its longest."
    )
    sampling: SamplingConfig = Field(default_factory=SamplingConfig, description="How completions are sampled.")
    resamples: int = Field(default=10_000, ge=100, description="Bootstrap resamples over prompts.")
    chunk_prompts: int = Field(default=32, ge=1, description="Prompts between two saves.")
    micro_batch_tokens: int = Field(default=8192, ge=16, description="Tokens of a forward pass.")

    @model_validator(mode="after")
    def _consistent(self) -> "BestOfNConfig":
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature 0 is greedy: all samples of a prompt are equal and none is better; use 1.0")
        if (self.pick == "callable") != bool(self.judge_callable):
            raise ValueError(
                f"judge_callable {self.judge_callable!r} goes with pick callable, and pick is {self.pick}: give both or neither"
            )
        if self.pick == "verifier" and self.truth == "none":
            raise ValueError("pick verifier with truth none: the verifier is there, so let it be the truth as well (truth verifier)")
        return self
