"""What a form says, and what a form shows: between the order on the page and that of the completions."""

import math
import time

from data.labelling.records import LONGEST_COMMENT, Answer
from data.labelling.store import Place

LONGEST_LOOK_S = 3600.0  # whoever takes longer was away


def answer_of(fields: dict[str, str], order: tuple[int, ...]) -> Answer:
    """The answer in a form, from the order shown to that of the completions.

    By hand: shown in the order (1, 0), "A is better" (grade 2) says that completion 1 is better: ranks (1, 0), grade -2.

    Raises:
        ValueError: no answer, or one that a form of ours cannot give.
    """
    comment = fields.get("comment", "").replace("\r\n", "\n").strip()
    if len(comment) > LONGEST_COMMENT:
        raise ValueError(f"The comment has {len(comment)} characters; {LONGEST_COMMENT} are the most.")
    if len(order) == 2:
        grade = _number(fields, "grade", -2, 2) * (1 if order[0] == 0 else -1)
        return Answer((0 if grade >= 0 else 1, 0 if grade <= 0 else 1), grade, comment)
    ranks = [0] * len(order)
    for at, index in enumerate(order):
        ranks[index] = _number(fields, f"place-{at}", 1, len(order)) - 1
    return Answer(tuple(ranks), 0, comment)


def fields_of(place: Place) -> dict[str, str]:
    """The fields of a form that shows what was answered."""
    if place.answer is None:
        return {}
    comment = {"comment": place.answer.comment}
    if len(place.order) == 2:
        return {"grade": str(place.answer.grade * (1 if place.order[0] == 0 else -1)), **comment}
    return {**{f"place-{at}": str(place.answer.ranks[index] + 1) for at, index in enumerate(place.order)}, **comment}


def _number(fields: dict[str, str], name: str, low: int, high: int) -> int:
    text = fields.get(name)
    if text is None:
        raise ValueError("Give every answer a place." if name.startswith("place") else "Choose one of the five buttons.")
    if text not in [str(number) for number in range(low, high + 1)]:
        raise ValueError(f"{text!r:.20} is not one of the choices.")
    return int(text)


def seconds_of(fields: dict[str, str]) -> float:
    """Time from showing the item to this answer; 0 where the form does not tell."""
    try:
        seconds = time.time() - float(fields.get("now", ""))
    except ValueError:
        return 0.0
    return min(max(seconds, 0.0), LONGEST_LOOK_S) if math.isfinite(seconds) else 0.0
