"""Which examples an update sees is a function of its number alone."""

import pytest

from models.seeds import derive_seed
from models.training.order import batch_indices, permutation, updates_for


def test_batches_by_hand():
    """Five examples in batches of two: update 2 takes the last of epoch 0 and the first of epoch 1."""
    first, second = (permutation(5, 7, "tag", "epoch", epoch) for epoch in (0, 1))
    assert [batch_indices(5, 2, update, 7, "tag") for update in range(4)] == [
        first[0:2],
        first[2:4],
        [first[4], second[0]],
        second[1:3],
    ]


@pytest.mark.parametrize(("size", "batch"), [(5, 2), (8, 4), (3, 7), (1, 1)])
def test_an_epoch_sees_each_example_once(size: int, batch: int):
    stream = [i for update in range(4 * size) for i in batch_indices(size, batch, update, 0, "t")]
    for begin in range(0, len(stream) - size + 1, size):
        assert sorted(stream[begin : begin + size]) == list(range(size))


def test_seed_tag_and_epoch_decide():
    assert permutation(20, 1, "a") == permutation(20, 1, "a")
    assert len({tuple(permutation(20, *parts)) for parts in [(1, "a"), (2, "a"), (1, "b"), (1, "a", 0), (1, "a", 1)]}) == 5


@pytest.mark.parametrize(
    ("size", "batch", "epochs", "updates"), [(10, 4, 1, 3), (10, 4, 2, 5), (10, 5, 0.5, 1), (3, 8, 1, 1), (3, 8, 0.01, 1)]
)
def test_updates_by_hand(size: int, batch: int, epochs: float, updates: int):
    assert updates_for(size, batch, epochs) == updates


def test_seeds_by_hand():
    """The first eight bytes of SHA-256 of the parts, joined by a separator that no number holds, without the last bit."""
    import hashlib

    assert derive_seed(3, "rollout", 1) == int(hashlib.sha256(b"3\x1frollout\x1f1").hexdigest()[:16], 16) // 2
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert 0 <= derive_seed(0) < 2**63
