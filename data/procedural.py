"""Entries of a procedural task as examples, in the source's own words."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.configs import SourceConfig
from data.conversions import prompt_of
from data.forms import Example
from data.reasoning import freeze
from data.records import Message
from data.sources import BadRow
from data.verifiers import verify


def asked(entry: Mapping[str, Any], source: SourceConfig, shows: bool) -> Example:
    """The example of an entry. Raises BadRow where it has to show an answer and there is none."""
    answer = entry["answer"]
    if answer is None and shows:
        raise BadRow("no_answer", "the task gives no answer to show: take it for prompts only")
    completion = None if answer is None else source.demonstration.replace("{answer}", str(answer))
    metadata = {"task": source.name, "question": entry["question"], "metadata": freeze(entry["metadata"])}
    return Example(
        (Message("user", _prompt_text(entry, source)),),
        completion=completion,
        answer=None if answer is None else str(answer),
        metadata=metadata if source.verifier_name == "reasoning_gym" else {},
    )


def _prompt_text(entry: Mapping[str, Any], source: SourceConfig) -> str:
    """The task's question in the source's own words."""
    fields = {name: value for name, value in entry["metadata"].items() if isinstance(value, str | int | float)}
    fields["question"] = entry["question"]
    try:
        return source.prompt.format_map(fields)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        named = ", ".join(sorted(fields))
        raise ValueError(f"prompt={source.prompt!r} of {source.name} cannot be filled in ({error!r}); it may name {named}") from error


def check_demonstrations(source: SourceConfig, examples: Sequence[Example]) -> None:
    """A model that imitates the demonstrations perfectly must be right. Raises ValueError where their own verifier refuses them all."""
    if source.verifier_name == "none":
        return
    shown = [example for example in examples if example.completion is not None]
    verdicts = [verify(prompt_of(example, source), example.completion or "") for example in shown]
    if verdicts and not any(verdict.correct for verdict in verdicts):
        raise ValueError(
            f"the demonstration {shown[0].completion!r} of {source.name} scores {verdicts[0].score:.2f} with its own verifier"
            f"{f' ({verdicts[0].error})' if verdicts[0].error else ''}: change demonstration={source.demonstration!r}, "
            f"verifier={source.verifier_name!r} or extraction={source.extraction!r}"
        )
