"""What a policy answered in its evaluation, as arrays.

Axes: ``P`` prompts, ``C`` sampled completions of all prompts one after another.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.blocks.repetition import tokens_of
from data.resampling import by_prompt

NUMBERS = ("n_tokens", "finished", "logp_nats", "reward", "held_out_reward", "score", "correct")
_MOST_CHARACTERS = 20_000  # of one answer, that are read as words


@dataclass(frozen=True, eq=False)  # by identity: it is what is computed once that is remembered
class Answered:
    """The sampled answers of one policy. ``numbers``: what every one of them has, by name."""

    name: str
    ids: tuple[str, ...]
    prompt_C: np.ndarray
    texts: tuple[str, ...]
    numbers: dict[str, np.ndarray]

    @property
    def prompts(self) -> int:
        """How many prompts were answered."""
        return len(self.ids)

    @property
    def samples(self) -> int:
        """The least number of samples of a prompt."""
        return int(np.bincount(self.prompt_C).min())

    @cached_property
    def tokens(self) -> list[list[str]]:
        """Words and signs of each answer, case folded."""
        return [tokens_of(text[:_MOST_CHARACTERS].casefold()) for text in self.texts]

    def means(self, value_C: np.ndarray) -> np.ndarray:
        """Mean over the samples of each prompt: ``[P]``."""
        return by_prompt(self.prompt_C, value_C, self.prompts)

    def by_id(self, value_P: Sequence[float] | np.ndarray) -> dict[str, float]:
        """One value a prompt under the prompt's id."""
        return dict(zip(self.ids, map(float, value_P), strict=True))


def read_answers(name: str, folder: Path) -> Answered:
    """The answers of an evaluation.

    Raises:
        ValueError: there is no prompt, a prompt has no answer or another's id, or a number is not finite.
    """
    rows: list[dict[str, Any]] = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["rows"]
    ids = tuple(row["id"] for row in rows)
    if not rows or len(set(ids)) < len(ids) or not all(row["sampled"] for row in rows):
        raise ValueError(f"the evaluation of {name} has {len(rows)} prompts, {len(set(ids))} ids, and needs an answer to each: repeat it")
    sampled = [answer for row in rows for answer in row["sampled"]]
    prompt_C = np.repeat(np.arange(len(rows)), [len(row["sampled"]) for row in rows])
    present = [key for key in NUMBERS if all(key in answer for answer in sampled)]
    numbers = {key: np.array([float(answer[key]) for answer in sampled]) for key in present}
    for key, value_C in numbers.items():
        if not np.isfinite(value_C).all():
            place = int(np.flatnonzero(~np.isfinite(value_C))[0])
            raise ValueError(
                f"{key} of an answer of {name} to prompt {ids[prompt_C[place]]} is {value_C[place]}: policy or reward model is damaged"
            )
    return Answered(name, ids, prompt_C, tuple(answer["text"] for answer in sampled), numbers)


def read_all(evaluations: dict[str, Path], baseline: str) -> dict[str, Answered]:
    """The answers of every policy.

    Raises:
        ValueError: the baseline was not evaluated, or two policies answered different prompts.
    """
    if baseline not in evaluations:
        raise ValueError(f"behaviour.baseline {baseline!r} was not evaluated; there is {', '.join(evaluations)}")
    answered = {name: read_answers(name, folder) for name, folder in evaluations.items()}
    for name, own in answered.items():
        if own.ids != answered[baseline].ids:
            raise ValueError(f"{name} and {baseline} answered different prompts: evaluate both on the same data")
    return answered
