"""How often a training stage saves what it needs to resume, and what it keeps of the policy on its way."""

from pydantic import Field

from models.configs.base import StageConfig, operational


class ResumeConfig(StageConfig):
    """Neither setting changes a result: resume is exact wherever the last checkpoint was."""

    every_s: float = operational(120.0, "Seconds between checkpoints; 0 = none by time.", ge=0)
    every_updates: int = operational(0, "Optimiser updates between checkpoints; 0 = none by count.", ge=0)


class CheckpointConfig(ResumeConfig):
    """Of a stage that trains a policy. Snapshots are part of the artifact, so their number is part of the result."""

    snapshots: int = Field(
        default=0,
        ge=0,
        le=200,
        description="Moments on the way at which the policy is kept beside the final one, evenly spaced over the updates; 0 = none. "
        "Each takes the disk space of a policy; the stage overoptimisation reads them.",
    )
