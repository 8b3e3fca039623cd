"""From an example to the record that a table takes of it."""

from collections.abc import Callable

from data.configs import SourceConfig
from data.forms import Example
from data.records import Demonstration, Document, Label, Message, Preference, Prompt, Ranking, Record, record_id


def record_of(table: str, example: Example, source: SourceConfig) -> Record:
    """The record of an example in a table."""
    return _RECORDS[table.removeprefix("test_")](example, source)


def prompt_of(example: Example, source: SourceConfig) -> Prompt:
    """The example as what a verifier judges answers to."""
    metadata = dict(example.metadata)
    if source.extraction != "answer":
        metadata["extraction"] = source.extraction
    verifier = source.verifier_name
    name = record_id("prompt", example.prompt, verifier, example.answer)
    return Prompt(name, source.place, example.prompt, answer=example.answer, verifier=verifier, metadata=metadata)


def _demonstration(example: Example, source: SourceConfig) -> Demonstration:
    messages = (*example.prompt, Message("assistant", example.completion or ""))
    return Demonstration(record_id("demonstration", messages), source.place, messages)


def _preference(example: Example, source: SourceConfig) -> Preference:
    chosen, rejected = example.chosen or "", example.rejected or ""
    name = record_id("preference", example.prompt, chosen, rejected)
    return Preference(name, source.place, example.prompt, chosen, rejected, example.margin)


def _label(example: Example, source: SourceConfig) -> Label:
    text, desirable = example.labelled or "", bool(example.desirable)
    return Label(record_id("label", example.prompt, text, desirable), source.place, example.prompt, text, desirable)


def _ranking(example: Example, source: SourceConfig) -> Ranking:
    name = record_id("ranking", example.prompt, list(example.ranked), list(example.ranks))
    return Ranking(name, source.place, example.prompt, example.ranked, example.ranks, example.scores)


def _document(example: Example, source: SourceConfig) -> Document:
    text = example.completion or ""
    return Document(record_id("document", text), source.place, text)


_RECORDS: dict[str, Callable[[Example, SourceConfig], Record]] = {
    "demonstrations": _demonstration,
    "prompts": prompt_of,
    "preferences": _preference,
    "labels": _label,
    "rankings": _ranking,
    "documents": _document,
}
