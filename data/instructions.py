"""Prompts with instructions that a rule can check, in the published form of IFEval, and whether an answer follows them.

{"key": 1000, "prompt": "...", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.blocks.language import languages
from data.instruction_checks import CHECKS, RELATIONS, Kind
from data.sources import BadRow
from data.suite_rows import text_in


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction of a prompt: its published name and parameters."""

    name: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class InstructedPrompt:
    """A prompt and what an answer to it must keep to."""

    id: str
    prompt: str
    instructions: tuple[Instruction, ...]


def instructed_prompt(row: Mapping[str, Any]) -> InstructedPrompt:
    """A row of the published form. Parameters that are null are not there: the hub's table has a column for each.

    Raises:
        BadRow: a key, prompt, instruction or parameter is missing, unknown or of another type.
    """
    names, parameters = row.get("instruction_id_list"), row.get("kwargs")
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        raise BadRow("wrong_type", f"instruction_id_list is {names!r}, not a list of names")
    if not isinstance(parameters, Sequence) or len(parameters) != len(names):
        raise BadRow("wrong_type", f"kwargs must be one object for each of the {len(names)} instructions, it is {parameters!r}")
    key = row.get("key")
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise BadRow("wrong_type", f"key is {key!r}, not a number or a text")
    pairs = zip(names, parameters, strict=True)
    return InstructedPrompt(str(key), text_in(row, "prompt"), tuple(_instruction(name, given) for name, given in pairs))


def _instruction(name: Any, given: Any) -> Instruction:
    if not isinstance(name, str) or name not in CHECKS:
        raise BadRow("unknown_instruction", f"{name!r} is not one of {', '.join(CHECKS)}")
    if not isinstance(given, Mapping):
        raise BadRow("wrong_type", f"kwargs of {name} are {given!r}, not an object")
    wanted, present = CHECKS[name].parameters, {key: value for key, value in given.items() if value is not None}
    if present.keys() != wanted.keys():
        raise BadRow("wrong_parameters", f"{name} takes {sorted(wanted)}, the row gives {sorted(present)}")
    return Instruction(name, {key: _checked(f"{name}.{key}", present[key], kind) for key, kind in wanted.items()})


def _checked(what: str, value: Any, kind: Kind) -> Any:
    """The parameter, whole numbers as int. Raises BadRow for another type or value."""
    if not _FITS[kind](value):
        raise BadRow("wrong_parameters", f"{what} is {value!r}, which is no {kind}")
    return int(value) if kind == "count" else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value % 1 == 0


_FITS: dict[Kind, Callable[[Any], bool]] = {
    "text": _is_text,
    "texts": lambda value: isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and all(map(_is_text, value)),
    "letter": lambda value: _is_text(value) and len(value) == 1,
    "count": _is_count,
    "relation": lambda value: _is_text(value) and value in RELATIONS,
    "language": lambda value: _is_text(value) and value in languages(),
}


def followed(answer: str, instruction: Instruction) -> bool:
    """Strictly: the answer as it is. An empty one follows nothing."""
    return bool(answer.strip()) and CHECKS[instruction.name].follows(answer, **instruction.parameters)


def loosely_followed(answer: str, instruction: Instruction) -> bool:
    """True where the answer, or it without its first line, its last, both, or any of these without asterisks, follows the instruction.

    Source: Zhou et al. 2023, section 2.2: an introduction, a farewell or Markdown emphasis is then no fault.
    """
    return any(followed(variant, instruction) for variant in variants(answer))


def variants(answer: str) -> list[str]:
    """The eight readings of the loose check."""
    lines = answer.split("\n")
    plain = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return [*plain, *(text.replace("*", "") for text in plain)]
