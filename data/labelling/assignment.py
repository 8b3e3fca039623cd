"""Who gets which item, in which order: pure functions of a seed, so that a restart changes nothing."""

import hashlib
import random
from collections.abc import Sequence

from data.labelling.records import Settings


def draw(seed: int, *parts: object) -> random.Random:
    """Random numbers that depend on the seed and the parts alone, the same in every process."""
    text = "\0".join(str(part) for part in (seed, *parts))
    return random.Random(int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()))


def shown_order(seed: int, annotator: str, item: str, k: int) -> tuple[int, ...]:
    """The completions' indices in the order in which this annotator sees them."""
    order = list(range(k))
    draw(seed, "order", annotator, item).shuffle(order)
    return tuple(order)


def shuffled(ids: Sequence[str], seed: int) -> list[str]:
    """The items in the order in which they are handed out."""
    return sorted(ids, key=lambda item: draw(seed, "item", item).random())


def targets(ids: Sequence[str], settings: Settings) -> dict[str, int]:
    """Labels that each item gets: ``overlap_annotators`` for a share of them, 1 for the others.

    By hand: 10 items, share 0.25 and 3 annotators give 2 items (0.25 x 10 = 2.5, to the even side) 3 labels and 8 items 1 label.
    """
    several = set(sorted(ids, key=lambda item: draw(settings.seed, "overlap", item).random())[: round(settings.overlap_share * len(ids))])
    return {item: settings.overlap_annotators if item in several else 1 for item in ids}


def is_gold_turn(settings: Settings, annotator: str, position: int) -> bool:
    """Whether the item at this position of an annotator's list is one with a known answer."""
    return draw(settings.seed, "gold", annotator, position).random() < settings.gold_share
