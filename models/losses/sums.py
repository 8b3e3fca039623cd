"""Metrics that add up: a sum and a count, so that micro-batches of any size give the same mean."""

from collections.abc import Iterable

import torch
from torch import Tensor

Sums = dict[str, tuple[Tensor, Tensor | float]]


def mean_of(values: Tensor) -> tuple[Tensor, float]:
    """The (sum, count) of all elements."""
    return values.detach().float().sum(), float(values.numel())


def merge(parts: Iterable[Sums]) -> dict[str, float]:
    """The mean of each metric over all parts; a metric without any count is left out."""
    totals: dict[str, list[float]] = {}
    for part in parts:
        for name, (total, count) in part.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += float(total)
            entry[1] += float(count)
    return {name: total / count for name, (total, count) in totals.items() if count}


def masked(values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """The (sum, count) of the elements where ``mask`` is True."""
    return torch.where(mask, values.detach().float(), 0.0).sum(), mask.sum()
