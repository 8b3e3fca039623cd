"""Settings of the second reward model, by which policies are judged that were not trained on it."""

from pydantic import Field

from models.configs.base import StageConfig
from models.configs.reward_model import RewardModelConfig


class HeldOutRewardConfig(StageConfig):
    """A reward model of the held-out pairs, with a seed of its own; all that is not said here is as in the first one.

    Off by default: how much its word is worth depends on how many pairs are held out, which is not its own to decide. A judge of a few
    dozen pairs is a coin, and a coin among the guards of a promotion refuses honest models.
    """

    train: bool = Field(
        default=False,
        description="Train it. It learns from the held-out pairs alone (preferences.test_share, or curate.test_preferences): hold out some "
        "hundreds, or it knows nothing.",
    )
    batch_size: int = Field(default=8, ge=1, description="Pairs an update: fewer than of the first reward model, as there are fewer pairs.")
    epochs: float = Field(default=2.0, gt=0, description="Passes over the held-out pairs.")

    def settings(self, first: RewardModelConfig) -> RewardModelConfig:
        """The settings that it is trained with, given those of the reward model that policies are trained on."""
        own = {"pairs": "test", "tie_threshold": 0.0, "batch_size": self.batch_size, "epochs": self.epochs, "max_updates": 0}
        return RewardModelConfig.model_validate(first.model_dump() | own)
