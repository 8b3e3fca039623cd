"""Which examples an update sees, as a pure function of its number: resume needs no data cursor beyond it."""

import torch

from models.seeds import derive_seed


def permutation(size: int, *seed_parts: object) -> list[int]:
    """A permutation of ``range(size)`` that only the seed parts decide."""
    generator = torch.Generator().manual_seed(derive_seed(*seed_parts))
    return torch.randperm(size, generator=generator).tolist()


def batch_indices(size: int, batch: int, update: int, seed: int, tag: str) -> list[int]:
    """Indices of the examples of one update: epoch after epoch of fresh permutations, cut into batches without gaps.

    By hand: 5 examples in batches of 2: update 2 takes the last example of epoch 0 and the first of epoch 1.
    """
    positions = range(update * batch, (update + 1) * batch)
    orders = {epoch: permutation(size, seed, tag, "epoch", epoch) for epoch in {p // size for p in positions}}
    return [orders[p // size][p % size] for p in positions]


def updates_for(size: int, batch: int, epochs: float, most: int = 0) -> int:
    """Updates that see each example ``epochs`` times, rounded up; at least one, and not more than ``most`` unless that is 0."""
    updates = max(1, -(-round(size * epochs) // batch))
    return min(updates, most) if most else updates
