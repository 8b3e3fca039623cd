"""Optimiser settings that every trainer shares."""

from typing import Literal

from pydantic import Field

from models.configs.base import StageConfig


class OptimConfig(StageConfig):
    """AdamW with float32 master weights, a schedule and clipping by global norm."""

    learning_rate: float = Field(default=1e-5, gt=0, description="Peak learning rate.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        default="cosine", description="How the rate falls after warm-up; linear and cosine end at final_rate_share."
    )
    final_rate_share: float = Field(default=0.1, ge=0, le=1, description="Share of the peak rate left at the last update.")
    warmup_share: float = Field(default=0.05, ge=0, lt=1, description="Share of all updates in which the rate rises linearly from 0.")
    weight_decay: float = Field(default=0.0, ge=0, description="Decoupled weight decay, on matrices only.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="Decay of the first moment.")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="Decay of the second moment.")
    epsilon: float = Field(default=1e-8, gt=0, description="Added to the root of the second moment.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this global norm.")
