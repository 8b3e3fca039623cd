"""Pydantic's validation errors in the user's words: path of the field, value given, what is allowed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the nearest candidate, or nothing."""
    near = difflib.get_close_matches(word, list(candidates), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def describe(error: ValidationError, model: type[BaseModel]) -> str:
    """One line a fault, e.g. `  dpo.beta = -1: must be more than 0`."""
    return "\n".join(f"  {line}" for line in dict.fromkeys(_line(fault, model) for fault in error.errors(include_url=False)))


def _line(fault: ErrorDetails, model: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in fault["loc"]) or "config"
    kind, context = fault["type"], fault.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{path}: there is no such field{_siblings(fault['loc'], model)}"
    if kind == "missing":
        return f"{path}: is required"
    return f"{path} = {_shown(fault['input'])}: {_reason(kind, context, fault)}"


def _reason(kind: str, context: dict[str, Any], fault: ErrorDetails) -> str:
    if kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = context[key]
        return f"must be {words} {int(bound) if isinstance(bound, float) and bound.is_integer() else bound}"
    if kind in ("literal_error", "enum"):
        allowed = re.findall(r"'([^']*)'", context["expected"])
        return f"must be {context['expected']}{did_you_mean(str(fault['input']), allowed)}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", fault["msg"]))
    return fault["msg"].replace("Input should be", "must be").replace("Value should", "must")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _siblings(path: tuple[int | str, ...], model: type[BaseModel]) -> str:
    owner = _owner(path[:-1], model)
    if owner is None:
        return ""
    fields = list(owner.model_fields)
    return f"{did_you_mean(str(path[-1]), fields)} (fields: {', '.join(fields)})"


def _owner(path: tuple[int | str, ...], model: type[BaseModel]) -> type[BaseModel] | None:
    """The model class at a path of field names, list positions and dict keys; None where there is none."""
    annotation: Any = model
    for part in path:
        annotation = _without_none(annotation)
        if _is_model(annotation):
            field = annotation.model_fields.get(str(part))
            annotation = None if field is None else field.annotation
        else:  # of list[X], tuple[X, ...] and dict[str, X] the X
            elements = [argument for argument in get_args(annotation) if argument is not Ellipsis]
            annotation = elements[-1] if elements else None
    annotation = _without_none(annotation)
    return annotation if _is_model(annotation) else None


def _without_none(annotation: Any) -> Any:
    members = [member for member in get_args(annotation) if member is not type(None)]
    return members[0] if type(None) in get_args(annotation) and len(members) == 1 else annotation


def _is_model(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
