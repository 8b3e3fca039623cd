"""Questions with given choices, of which one is right or several are true.

    {"question": "...", "choices": ["...", "..."], "answer": 1}                    one is right, counted from 0
    {"question": "...", "choices": ["...", "..."], "labels": [1, 0]}               several may be true; the first of them is the best
    {"question": "...", "mc1_targets": {...}, "mc2_targets": {...}}                TruthfulQA, as published and as on the hub

``task`` and ``difficulty`` may stand beside them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from data.records import record_id
from data.sources import BadRow
from data.suite_rows import BREAKDOWN, text_in


@dataclass(frozen=True, slots=True)
class Question:
    """A question and its choices.

    ``single``: the choices among which exactly one is right, ``best``. ``true``: which of all choices are true; None where the set
    knows one right choice only.
    """

    id: str
    question: str
    choices: tuple[str, ...]
    single: tuple[int, ...]
    best: int
    true: tuple[bool, ...] | None = None
    breakdown: Mapping[str, str] = field(default_factory=dict)


def question_of(row: Mapping[str, Any]) -> Question:
    """The question of a row in one of the three forms. Raises BadRow where it is none of them, or has no right or no wrong choice."""
    asked = text_in(row, "question")
    if "mc1_targets" in row:
        choices, single, best, true = _truthful(row)
    elif "labels" in row:
        choices, labels = _choices(row.get("choices")), _labels(row["labels"])
        choices, single, best, true = _labelled(choices, labels)
    else:
        choices, true = _choices(row.get("choices")), None
        single, best = tuple(range(len(choices))), _answer(row.get("answer"), len(choices))
    breakdown = {name: str(row[name]) for name in BREAKDOWN if isinstance(row.get(name), str | int)}
    name = record_id("question", asked, list(choices), list(single), best, list(true or ()))
    return Question(name, asked, choices, single, best, true, breakdown)


def _choices(value: Any) -> tuple[str, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2:
        raise BadRow("wrong_type", f"choices is {value!r}, not a list of at least two texts")
    choices = tuple(text_in({"choice": choice}, "choice") for choice in value)
    if len(set(choices)) < len(choices):
        raise BadRow("duplicate", f"two choices are the same text: {list(choices)}")
    return choices


def _labels(value: Any) -> tuple[bool, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or any(label not in (0, 1) for label in value):
        raise BadRow("wrong_type", f"labels is {value!r}, not a list of 0 and 1")
    return tuple(map(bool, value))


def _answer(value: Any, choices: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < choices:
        raise BadRow("wrong_type", f"answer is {value!r}, not the number of one of the {choices} choices, counted from 0")
    return value


def _labelled(choices: tuple[str, ...], true: tuple[bool, ...]) -> tuple[tuple[str, ...], tuple[int, ...], int, tuple[bool, ...]]:
    if len(true) != len(choices) or all(true) or not any(true):
        raise BadRow("wrong_labels", f"{len(choices)} choices need as many labels, of both kinds; they have {list(map(int, true))}")
    best = true.index(True)
    return choices, tuple(i for i, label in enumerate(true) if i == best or not label), best, true


def _truthful(row: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[int, ...], int, tuple[bool, ...]]:
    """The choices of mc2, and among them those of mc1."""
    one, several = _targets(row["mc1_targets"], "mc1_targets"), _targets(row.get("mc2_targets"), "mc2_targets")
    if sum(one.values()) != 1:
        raise BadRow("wrong_labels", f"mc1_targets has {sum(one.values())} true choices, it must have one")
    if any(several.get(text) != label for text, label in one.items()):
        raise BadRow("wrong_labels", "a choice of mc1_targets is not in mc2_targets, or is true in one and false in the other")
    choices, _, _, true = _labelled(_choices(list(several)), tuple(several.values()))
    single = tuple(i for i, text in enumerate(choices) if text in one)
    return choices, single, next(i for i in single if true[i]), true


def _targets(value: Any, name: str) -> dict[str, bool]:
    if isinstance(value, Mapping) and value.keys() == {"choices", "labels"}:
        choices, labels = _choices(value["choices"]), _labels(value["labels"])
        if len(choices) == len(labels):
            return dict(zip(choices, labels, strict=True))
    elif isinstance(value, Mapping) and value:
        return dict(zip(_choices(list(value)), _labels(list(value.values())), strict=True))
    raise BadRow("wrong_type", f"{name} is neither a table of choices with labels nor lists choices and labels of one length")
