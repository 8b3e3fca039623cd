"""Settings of retraining: what counts as new, from where and how it trains, who is asked, and what becomes of its slots."""

from typing import Literal

from pydantic import Field

from models.configs.base import StageConfig, operational

Method = Literal["sft", "dpo", "grpo", "sft_dpo", "sft_grpo"]


class NewsConfig(StageConfig):
    """What is looked at for something new since the champion, and how new is mixed with old."""

    labels: list[str] = Field(
        default_factory=lambda: ["*"],
        description="Labels of people to learn from: runs, recipes or tasks as in `posttrain labels`; *: every task of the output folder; "
        "an empty list: none.",
    )
    min_labels: int = Field(default=1, ge=1, description="Fewest new labels that are worth a retraining.")
    old_share: float = Field(
        default=0.3, ge=0, le=1, description="Share of the old rows of files and hub sets that is trained on again, beside all new ones."
    )


class ApprovalConfig(StageConfig):
    """Whether a person is asked before a candidate that passed the gate becomes champion."""

    asked: bool = operational(False, "Wait until a person types the name of the candidate in the Prefect UI.")
    while_waiting: Literal["pause", "suspend"] = operational(
        "pause", "pause: the process stays. suspend: it ends and a worker starts it again; for runs of a deployment."
    )
    patience_h: float = operational(24.0, "Hours after which no answer is a refusal.", gt=0)


class SlotConfig(StageConfig):
    """What becomes of a slot of the schedule that comes late."""

    latest_h: float = operational(12.0, "Hours after its time at which a slot is skipped instead of run late.", gt=0)
