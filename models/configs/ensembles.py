"""Settings of reward-model ensembles."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.base import StageConfig, operational


class EnsembleConfig(StageConfig):
    """Several reward models, trained with different seeds, read as one."""

    aggregate: Literal["mean", "worst", "uncertainty"] = Field(
        default="mean",
        description="Reward of the ensemble: the members' mean, their lowest, or the mean less coefficient times their standard deviation.",
    )
    coefficient: float = Field(
        default=1.0, gt=0, description="Standard deviations of the members taken off the mean; for aggregate = uncertainty."
    )
    micro_batch_tokens: int = operational(8192, "Tokens of a forward pass over the held-out pairs.", ge=16)
    max_tokens: int = Field(
        default=1024, ge=8, description="Held-out pairs longer than this, in tokens with both completions, are left out."
    )

    @model_validator(mode="after")
    def _coefficient_is_read(self) -> "EnsembleConfig":
        if self.aggregate != "uncertainty" and self.coefficient != 1.0:
            raise ValueError(f"coefficient {self.coefficient} is not read by aggregate {self.aggregate}: use uncertainty, or leave it out")
        return self
