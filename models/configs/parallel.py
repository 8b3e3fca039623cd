"""Over how many processes a training stage spreads its model."""

from pydantic import Field

from models.configs.base import StageConfig


class ParallelConfig(StageConfig):
    """Fully sharded data parallelism: each rank holds its share of weights, gradients and optimiser, and sees its share of every batch.

    Sums are added up in another order, so that losses agree with those of one process within 1e-4 and not bit for bit.
    """

    ranks: int = Field(
        default=1,
        ge=1,
        le=4096,
        description="Processes, each on a device of its own, that train together under torchrun; 1 = one process without it. More hold a "
        "larger model, and pay where an update has several micro-batches.",
    )
