"""Drawing some of many."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def drawn(items: Sequence[T], count: int, seed: int) -> list[T]:
    """So many items by chance, in their order; all where count is 0."""
    if not count or count >= len(items):
        return list(items)
    return [items[i] for i in sorted(np.random.default_rng(seed).choice(len(items), count, replace=False))]
