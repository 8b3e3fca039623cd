"""A labelling task of a few items."""

from pathlib import Path

import pytest

from data.labelling.records import Item, Settings
from data.labelling.store import LabelStore
from data.records import Message


def asked(number: int, k: int = 2) -> Item:
    return Item(f"item-{number}", (Message("user", f"Question {number}?"),), tuple(f"answer {n}" for n in range(k)))


def known(number: int) -> Item:
    return Item(f"gold-{number}", (Message("user", f"Known {number}?"),), ("right", "wrong"), (0, 1))


@pytest.fixture
def make(tmp_path: Path):
    """make(items, **settings) -> a task with that many items of two answers."""

    def store_of(items: int = 4, gold: int = 0, k: int = 2, **settings: object) -> LabelStore:
        store = LabelStore(tmp_path / "task.db")
        store.register([*(asked(n, k) for n in range(items)), *(known(n) for n in range(gold))], Settings(**settings))  # type: ignore[arg-type]
        for name in ("ada", "bob"):
            store.add_annotator(name, f"token of {name}", by_link=False)
        return store

    return store_of
