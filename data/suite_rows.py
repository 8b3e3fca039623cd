"""Rows that a suite of evaluation asks about. Every row counts: one that cannot be used stops the reading, it is not set aside.

A number over the rows that happened to be readable is not the published one.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

from data.configs import SourceConfig
from data.conversions import prompt_of
from data.drawing import drawn
from data.forms import Example, mapped
from data.procedural import asked
from data.reading import examples_of
from data.reasoning import task_entries
from data.records import Prompt, record_id
from data.screening import prepared
from data.sources import BadRow, RawRow, read_rows
from data.tables import read_table

BARREN_TRIES = 2_000  # entries in a row without a new question: the task has no more
BREAKDOWN = ("task", "difficulty")  # columns by which a suite is broken down


class Item(Protocol):
    """What every row of a suite has: an id by which policies are paired."""

    @property
    def id(self) -> str:
        """The id."""
        ...


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    """A prompt, and the answer that its row gives; "" where it gives none."""

    prompt: Prompt
    answer: str = ""


T = TypeVar("T")
ItemT = TypeVar("ItemT", bound=Item)


def items_of(source: SourceConfig, parse: Callable[[Mapping[str, Any]], ItemT]) -> list[ItemT]:
    """Every row as ``parse`` reads it under our column names; rows that say the same have one id and are taken once.

    Raises:
        ValueError: a row that cannot be used, with its file and line; or no row at all.
        FileNotFoundError, ConnectionError: as ``read_rows``.
    """
    items: dict[str, ItemT] = {}
    for row in read_rows(source):
        try:
            if row.values is None:
                raise row.fault or BadRow("wrong_type", "the row has no values")
            item = parse(mapped(row.values, source.columns))
        except BadRow as fault:
            _refuse(row.file, row.line, fault)
        items.setdefault(item.id, item)
    return _some(list(items.values()), source)


def held_out_prompts(data: Path | None, suite: str) -> list[Prompt]:
    """The prompts that curation held out. Raises ValueError where there is no curated data."""
    if data is None:
        raise ValueError(f"the suite {suite} asks the held-out prompts, and it is given no data: let it ask prompts of its own source")
    return read_table(data / "test_prompts.parquet", Prompt)


def answered_prompts(source: SourceConfig) -> list[AnsweredPrompt]:
    """The prompts of all rows with the answers that the rows give, each prompt once.

    Raises:
        ValueError: a row cannot be used or asks nothing, or there is none.
    """
    found: dict[str, AnsweredPrompt] = {}
    for row, example in _examples(source):
        if not example.prompt:
            _refuse(row.file, row.line, _asks_nothing())
        prompt = Prompt(record_id("item", example.prompt), source.place, example.prompt, example.answer)
        found.setdefault(prompt.id, AnsweredPrompt(prompt, example.completion or ""))
    return _some(list(found.values()), source)


def prompts_of(source: SourceConfig, count: int, seed: int) -> list[Prompt]:
    """Prompts with what their verifier needs, ``count`` of them drawn by the seed (0: all), none twice.

    Rows may have the columns ``task`` and ``difficulty``.

    Raises:
        ValueError: the source names no verifier, a row cannot be used, or a task gives fewer different questions than asked for.
    """
    if source.verifier_name == "none":
        raise ValueError(f"source {source.place} names no verifier, so no answer can be right: set verifier to math, number or exact")
    if source.kind == "reasoning_gym":
        return _generated(source, count, seed)
    prompts = {prompt.id: prompt for prompt in _read(source)}
    return drawn(_some(list(prompts.values()), source), count, seed)


def _read(source: SourceConfig) -> Iterator[Prompt]:
    for row, example in _examples(source):
        known = mapped(row.values or {}, source.columns)
        try:
            if not example.prompt:
                raise _asks_nothing()
            prompt = prompt_of(prepared(example, source, ""), source)
        except BadRow as fault:
            _refuse(row.file, row.line, fault)
        named = {name: known[name] for name in BREAKDOWN if isinstance(known.get(name), str | int)}
        yield replace(prompt, metadata=prompt.metadata | named)


def _examples(source: SourceConfig) -> Iterator[tuple[RawRow, Example]]:
    """Every example of every row, each with its row."""
    for row, examples in examples_of(source):
        for example in examples:
            if isinstance(example, BadRow):
                _refuse(row.file, row.line, example)
            yield row, example


def _asks_nothing() -> BadRow:
    return BadRow("no_prompt", "a document asks nothing")


def _generated(source: SourceConfig, count: int, seed: int) -> list[Prompt]:
    if not count:
        raise ValueError(f"the task {source.name} has no end: say how many prompts the suite asks (prompts)")
    prompts: dict[str, Prompt] = {}
    barren = 0
    for entry in task_entries(source.name, source.task, seed=int(record_id("suite", seed, source.name)[:7], 16)):
        prompt = prompt_of(prepared(asked(entry, source, shows=False), source, ""), source)
        barren = 0 if prompt.id not in prompts else barren + 1
        prompts.setdefault(prompt.id, prompt)
        if len(prompts) == count:
            return list(prompts.values())
        if barren == BARREN_TRIES:
            break
    raise ValueError(
        f"{source.place} with {source.task} gives only {len(prompts)} different questions, {count} are asked for: ask for fewer"
    )


def _some(items: list[T], source: SourceConfig) -> list[T]:
    if not items:
        raise ValueError(f"source {source.place} holds no rows")
    return items


def _refuse(file: str, line: int, fault: BadRow) -> NoReturn:
    raise ValueError(
        f"{file}:{line} cannot be used ({fault.reason}: {fault.detail}): mend or remove the row, or map its columns"
    ) from fault


def text_in(row: Mapping[str, Any], name: str) -> str:
    """A column that must be a text with something in it, encodable. Raises BadRow."""
    value = row.get(name)
    if not isinstance(value, str):
        raise BadRow("wrong_type", f"{name} is {type(value).__name__}, not text; the columns are {', '.join(sorted(row))}")
    if not value.strip():
        raise BadRow("empty", f"{name} is empty")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow("invalid_utf8", f"{name} holds bytes or escapes that are not UTF-8")
    return value
