"""How often a training stage saves what it needs to resume."""

from models.configs.base import StageConfig, operational


class CheckpointConfig(StageConfig):
    """Neither setting changes a result: resume is exact wherever the last checkpoint was."""

    every_s: float = operational(120.0, "Seconds between checkpoints; 0 = none by time.", ge=0)
    every_updates: int = operational(0, "Optimiser updates between checkpoints; 0 = none by count.", ge=0)
