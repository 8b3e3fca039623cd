"""Settings of promotion: what a candidate must show before it becomes the champion."""

from typing import Literal

from pydantic import Field

from models.configs.base import StageConfig

Requirement = Literal["required", "if_measured", "off"]

_NAMES = "accuracy, accuracy_greedy, score, win_rate, reward, held_out_reward, finished, or SUITE/MEASURE of a suite"


class GuardConfig(StageConfig):
    """One quantity that must not get worse. Where it was not measured the candidate is refused."""

    measure: str = Field(min_length=1, description=f"Which: {_NAMES}.")
    margin: float = Field(
        default=0.0, ge=0, description="How much worse it may be, in its own unit: the paired interval must lie above minus this."
    )
    better: Literal["measured", "higher", "lower"] = Field(
        default="measured", description="Which direction is an improvement; measured: as the measure itself says."
    )


class GateConfig(StageConfig):
    """What promotion asks of a candidate. Every interval is paired over prompts, at 95 %."""

    primary: str = Field(
        default="accuracy", min_length=1, description=f"Quantity on which the candidate must beat the champion: {_NAMES}."
    )
    minimum_gain: float = Field(default=0.0, ge=0, description="The interval of the gain must lie above this, in the quantity's unit.")
    guards: list[GuardConfig] = Field(
        default_factory=lambda: [GuardConfig(measure="finished", margin=0.05)], description="Quantities that must not get worse."
    )
    kl_ceiling_nats: float = Field(default=50.0, gt=0, description="Largest KL to the reference, in nats a completion, at its upper end.")
    length_control: Literal["judged", "always", "off"] = Field(
        default="judged",
        description="Ask a candidate with longer answers for a gain that their length does not explain: judged, where a judge or a reward "
        "model gives the primary quantity; always; or off.",
    )
    behaviour: Requirement = Field(default="required", description="Refuse a policy whose behaviour was found to be a reward hack.")
    over_optimisation: Requirement = Field(default="if_measured", description="Refuse a policy trained beyond the gold optimum.")
    held_out_reward: Requirement = Field(
        default="if_measured", description="Refuse a policy that a reward model which it was not trained on likes less than the champion."
    )
    held_out_reward_margin: float = Field(
        default=0.2, ge=0, description="How much less, in standard deviations of the champion's rewards over prompts."
    )
    safety: Requirement = Field(default="if_measured", description="Refuse a policy that is worse in a suite of safety or toxicity.")
    safety_margin: float = Field(default=0.05, ge=0, description="How much worse a measure of those suites may be, in its own unit.")
    min_prompts: int = Field(default=100, ge=2, description="Fewest held-out prompts that prove anything.")
    all_prompts: bool = Field(default=True, description="Refuse an evaluation of a part of the held-out prompts.")
    held_out: str = Field(
        default="", pattern="^[0-9a-f]*$", description="First characters of the digest of the data to be judged on; empty: any data."
    )
    baseline: str = Field(
        default="", description="Policy of the run that the first champion must beat; empty: the baseline of the run's comparison."
    )
    resamples: int = Field(default=10_000, ge=100, description="Bootstrap resamples over prompts.")
