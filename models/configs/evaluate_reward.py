"""Settings of measuring a reward model."""

from pydantic import Field, model_validator

from data.configs import SourceConfig
from data.files import sha256_of
from models.configs.base import StageConfig, operational
from models.configs.best_of_n import BestOfNConfig
from models.configs.judge_accuracy import JudgeSetConfig
from models.configs.sampling import SamplingConfig


class EvaluateRewardConfig(StageConfig):
    """How far a reward model can be trusted, on pairs that it was not trained on."""

    sets: list[SourceConfig] = Field(
        default_factory=list,
        description="Held-out pairs beside those of the preferences: files or hub datasets in any form of pairs, RewardBench's (prompt, "
        "chosen, rejected, subset) among them. A column subset names the subsets that accuracy is also told by.",
    )
    people: list[JudgeSetConfig] = Field(
        default_factory=list, description="Published pairs that several people compared, to measure agreement with people."
    )
    bins: int = Field(default=10, ge=2, le=100, description="Bins of confidence, of the calibration error and the reliability diagram.")
    length_bins: int = Field(
        default=8, ge=2, le=100, description="Bins of length difference, as many pairs in each, of the margin by length."
    )
    best_of_n: BestOfNConfig = Field(
        default_factory=lambda: BestOfNConfig(prompts=64, truth="none", sampling=SamplingConfig(max_tokens=128)),
        description="The best-of-n curve, made where the stage is given a policy and its data.",
    )
    max_tokens: int = Field(
        default=2048, ge=8, description="Pairs longer than this, in tokens with both completions, are left out and counted."
    )
    resamples: int = Field(default=2_000, ge=100, description="Bootstrap resamples over prompts.")
    chunk_pairs: int = operational(512, "Pairs between two saves.", ge=1)
    micro_batch_tokens: int = operational(8192, "Tokens of a forward pass.", ge=16)

    @model_validator(mode="after")
    def _measurable(self) -> "EvaluateRewardConfig":
        if any(source.kind == "reasoning_gym" for source in self.sets):
            raise ValueError("sets names a reasoning_gym task, which has right answers and no pairs: use kind file or hub")
        if self.best_of_n.pick != "reward_model":
            raise ValueError(f"best_of_n.pick is {self.best_of_n.pick}, and what is measured is a reward model: use pick reward_model")
        return self

    def cache_extra(self) -> dict[str, str]:
        """SHA-256 of every local file of pairs."""
        return {f"sets.{n}/{path.name}": sha256_of(path) for n, source in enumerate(self.sets) for path in source.paths()}
