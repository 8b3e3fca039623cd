"""Procedural tasks of reasoning-gym: questions without end, each with an answer and a scorer."""

import dataclasses
import difflib
import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

# Their scorers reward wrong answers or refuse right ones: fine to read, wrong to learn from.
UNCLEAN_TASKS = frozenset({"acre", "figlet_font", "game_of_life_halting", "propositional_logic"})


def task_entries(task: str, parameters: dict[str, Any], *, seed: int) -> Iterator[dict[str, Any]]:
    """The endless stream of a task's entries: ``{"question", "answer", "metadata"}``, the same for the same seed.

    Raises:
        ValueError: unknown task (names the nearest), unclean scorer, or a parameter the task does not take.
    """
    dataset = _dataset(task, parameters, seed)
    index = 0
    while True:
        yield dataset[index]
        index += 1


@functools.cache
def load_scorer(task: str) -> Callable[[str, dict[str, Any]], float]:
    """The task's scoring function, of (answer, entry). The first call of a process imports the library."""
    from reasoning_gym import get_score_answer_fn

    return cast(Callable[[str, dict[str, Any]], float], get_score_answer_fn(task))


def score(task: str, answer: str, *, question: str, expected: str | None, metadata: dict[str, Any]) -> float:
    """The task's own score of an answer in [0, 1]; near misses earn partial credit. Whatever the scorer raises passes through."""
    entry = {"question": question, "answer": expected, "metadata": thaw(metadata)}
    return float(load_scorer(task)(answer, entry))


def freeze(value: Any) -> Any:
    """A value JSON can hold and ``thaw`` gives back equal: scorers tell tuples from lists and whole-number keys from text."""
    if isinstance(value, tuple):
        return {"__tuple__": [freeze(v) for v in value]}
    if isinstance(value, list):
        return [freeze(v) for v in value]
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value):
            return {key: freeze(v) for key, v in value.items()}
        return {"__items__": [[freeze(key), freeze(v)] for key, v in value.items()]}
    return value


def thaw(value: Any) -> Any:
    """The inverse of ``freeze``."""
    if isinstance(value, list):
        return [thaw(v) for v in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {"__tuple__"}:
        return tuple(thaw(v) for v in value["__tuple__"])
    if value.keys() == {"__items__"}:
        return {thaw(key): thaw(v) for key, v in value["__items__"]}
    return {key: thaw(v) for key, v in value.items()}


def _dataset(task: str, parameters: dict[str, Any], seed: int) -> Any:
    from reasoning_gym.factory import DATASETS, create_dataset

    if task not in DATASETS:
        near = difflib.get_close_matches(task, DATASETS, n=3) or sorted(DATASETS)[:8]
        raise ValueError(f"unknown reasoning-gym task {task!r}; did you mean {', '.join(near)}? There are {len(DATASETS)}")
    if task in UNCLEAN_TASKS:
        raise ValueError(f"reasoning-gym's scorer of {task!r} is not reliable; choose a task other than {', '.join(sorted(UNCLEAN_TASKS))}")
    allowed = sorted({f.name for f in dataclasses.fields(DATASETS[task][1])} - {"seed", "size"})
    unknown = sorted(set(parameters) - set(allowed))
    if unknown:
        raise ValueError(f"reasoning-gym task {task!r} has no parameter {unknown[0]!r}; it takes {', '.join(allowed)}")
    try:
        return create_dataset(task, seed=seed, size=1_000_000_000, **parameters)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym task {task!r} refuses {parameters}: {error or type(error).__name__}") from error
