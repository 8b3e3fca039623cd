"""Settings of low-rank adapters."""

from typing import Literal

from pydantic import Field

from models.configs.base import StageConfig


class LoraSettings(StageConfig):
    """LoRA: the weights stay as they are, and each chosen matrix learns a product of two narrow ones beside it."""

    rank: int = Field(default=0, ge=0, description="Width of the adapters; 0 = off, all weights are trained.")
    alpha: float = Field(default=32.0, gt=0, description="The adapters' product is scaled by alpha / rank.")
    targets: Literal["attention", "all_linear"] = Field(
        default="all_linear", description="Matrices that get adapters: those of attention, or the feed-forward layers' as well."
    )
