"""The run form that Prefect shows for a flow: drawn from the JSON schema of its config, which is completed here.

Prefect's form shows a field's title, description and value, and the choices of a Literal. It shows neither limits nor defaults, it unfolds
every nested model, and a default that a factory makes is not in the schema: unfolded, such a field would run with another value than the
flow's own default. So a description ends with default and limits, the factories' defaults are written down, a field has the name that it
has in a recipe, small things come first, and the settings of a stage are one box of JSON that its menu unfolds.

A box is sent as {"__prefect_kind": "json", "value": "..."}. Prefect's server reads it for a run of the form, and not for a run of a
schedule: the config reads it itself.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel, GetJsonSchemaHandler, model_validator
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, to_jsonable_python

from data.markdown import inline
from models.configs.base import StageConfig

MOST_OPEN_FIELDS = 6  # of the first things; with more, a model is a box like those of the stages
LONGEST_LINE = 100  # characters of JSON; what is longer gets a line for each key
FIRST = ("recipe", "base_model", "curate", "data", "method", "methods")
LAST = ("evaluate", "suites", "behaviour", "overoptimisation", "comparison", "held_out_reward", "evaluate_reward")
BOX = "A box of JSON with what differs from the defaults; its menu, Use form input, shows every setting."

_KIND = "__prefect_kind"
# The server checks a deployment's parameters before it reads boxes. The form shows none of these.
_AS_BOX = {f"^{_KIND}$": {"const": "json"}, "^value$": {"type": "string"}}
_LIMITS = {
    "minimum": "at least",
    "exclusiveMinimum": "more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
    "minLength": "at least so many characters:",
    "maxLength": "at most so many characters:",
    "minItems": "at least so many entries:",
    "maxItems": "at most so many entries:",
}


class FormConfig(StageConfig):
    """The config of a flow: what its run form shows."""

    @model_validator(mode="before")
    @classmethod
    def _read_boxes(cls, values: Any) -> Any:
        return unfolded(values)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        own = handler.resolve_ref_schema(schema)
        _complete(cls, own, handler, set())
        for position, name in enumerate(sorted(cls.model_fields, key=lambda name: _rank(name, cls))):
            own["properties"][name]["position"] = position
            if _is_box(name, cls.model_fields[name]):
                own["properties"][name]["description"] += f" {BOX}"
        return schema


# The schema


def _rank(name: str, model: type[BaseModel]) -> tuple[int, int]:
    """What must be given, the small first things, other plain values, stages of the flow, inherited ones, what every flow ends with."""
    field = model.model_fields[name]
    order = list(model.model_fields).index(name)
    if name in FIRST:
        return 1, FIRST.index(name)
    if _model_of(field.annotation) is None:
        return (0 if field.is_required() else 2), order
    return (5 if name in LAST else 3 if name in inspect.get_annotations(model) else 4), order


def _complete(model: type[BaseModel], schema: JsonSchemaValue, handler: GetJsonSchemaHandler, done: set[type[BaseModel]]) -> None:
    if model in done:
        return
    done.add(model)
    for name, field in model.model_fields.items():
        shown = schema["properties"][name]
        shown["title"] = name
        if not field.is_required():
            shown["default"] = to_jsonable_python(_default_of(field))
        shown["description"] = " ".join([inline(field.description or ""), *_facts(field, shown)])
        for inner, place in _inner_models(field.annotation, shown):
            own = handler.resolve_ref_schema(place)
            _complete(inner, own, handler, done)
            own["patternProperties"] = _AS_BOX


def _default_of(field: FieldInfo) -> Any:
    return field.get_default(call_default_factory=True, validated_data={})


def _facts(field: FieldInfo, shown: JsonSchemaValue) -> list[str]:
    """Default and limits, as a sentence."""
    words = []
    if not field.is_required() and _model_of(field.annotation) is None:
        words.append(f"default {_default_words(shown['default'])}")
    words += [f"{meaning} {shown[name]:g}" for name, meaning in _LIMITS.items() if name in shown]
    sentence = ", ".join(words)
    return [f"{sentence[0].upper()}{sentence[1:]}."] if words else []


def _default_words(value: Any) -> str:
    if value is True or value is False:
        return "on" if value else "off"
    if isinstance(value, float):
        return f"{value:g}"
    text = inline(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    return text if value not in ("", [], {}) else "empty"


def _model_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _inner_models(annotation: Any, shown: JsonSchemaValue) -> Iterator[tuple[type[BaseModel], JsonSchemaValue]]:
    """Models that a field holds, as its value or in a list or dict, each with the place of its schema."""
    own = _model_of(annotation)
    if own is not None:
        yield own, shown
    for argument in get_args(annotation):
        inner = _model_of(argument)
        if inner is not None:
            yield inner, shown["items"] if "items" in shown else shown["additionalProperties"]


def _is_box(name: str, field: FieldInfo) -> bool:
    model = _model_of(field.annotation)
    if model is None or any(inner.is_required() for inner in model.model_fields.values()):
        return False
    return name not in FIRST or len(model.model_fields) > MOST_OPEN_FIELDS


# The values


def folded(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    """A config as the form shows it at first: stages as boxes of JSON, small models open.

    values: what differs from the defaults of `model`, as in a recipe.
    """
    config = model.model_validate(values)
    shown = dict(values)
    if not issubclass(model, FormConfig):  # a flow of the user's own, whose schema knows no boxes
        return shown
    for name, field in model.model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            given = _merged(_differences(value), values.get(name) or {})
            shown[name] = _box(given) if _is_box(name, field) else _opened(type(value), given)
    return shown


def _opened(model: type[BaseModel], values: Mapping[str, Any]) -> dict[str, Any]:
    inner = [name for name, field in model.model_fields.items() if _model_of(field.annotation) is not None]
    return {**values, **{name: _box(values.get(name) or {}) for name in inner}}


def _merged(differences: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe writes down, defaults too, and what the config makes of it beyond that."""
    inner = {name: differences.get(name) for name, item in written.items() if isinstance(item, Mapping)}
    nested = {name: _merged(below, written[name]) for name, below in inner.items() if isinstance(below, Mapping)}
    return {**written, **{name: item for name, item in differences.items() if name not in written}, **nested}


def _differences(value: Any) -> Any:
    """The least from which the classes of the models in a value make an equal one: an unfolded box shows their defaults for the rest."""
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        own = ((name, field, getattr(value, name)) for name, field in fields)
        return {name: _differences(item) for name, field, item in own if field.is_required() or item != _default_of(field)}
    if isinstance(value, Mapping):
        return {key: _differences(item) for key, item in value.items()}
    return [_differences(item) for item in value] if isinstance(value, list | tuple) else to_jsonable_python(value)


def _box(value: Mapping[str, Any]) -> dict[str, str]:
    text = json.dumps(value, ensure_ascii=False)
    if len(text) > LONGEST_LINE:
        lines = [f"  {json.dumps(key)}: {json.dumps(item, ensure_ascii=False)}" for key, item in value.items()]
        text = "{\n" + ",\n".join(lines) + "\n}"
    return {_KIND: "json", "value": text}


def unfolded(value: Any) -> Any:
    """The value with every box read.

    Raises:
        ValueError: a box does not hold JSON.
    """
    if isinstance(value, Mapping):
        if value.get(_KIND) == "json" and isinstance(value.get("value"), str):
            return unfolded(json.loads(value["value"]))
        return {key: unfolded(item) for key, item in value.items()}
    return [unfolded(item) for item in value] if isinstance(value, list) else value
