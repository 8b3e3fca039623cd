"""Recipes: named parameter sets of flows, with single values replaced from the command line.

    flow: rlhf                    # flows/rlhf.py, function rlhf; or "package.module:function" for a flow of your own
    description: one line for `posttrain recipes`
    config: {sft: {epochs: 2}}    # what differs from the defaults of the flow's config class

Everything a user can get wrong here ends in a `RecipeError` that names the place, the value and what is allowed.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from flows.faults import describe, did_you_mean

if TYPE_CHECKING:
    from prefect import Flow

FOLDER = Path(__file__).parent / "recipes"


class RecipeError(ValueError):
    """A recipe, a setting or a name that the user has to correct."""


class Recipe(BaseModel):
    """A parameter set of a flow."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    flow: str
    description: str = ""
    config: dict[str, Any] = {}


# Reading


class _Loader(yaml.SafeLoader):
    """YAML 1.2 scalars (`off` is a word, `1e-4` a number), and no key twice in a mapping."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - a table of the parent class, made anew so that the parent keeps its own
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        yaml.YAMLError: with line and column.
    """
    return yaml.load(text, Loader=_Loader)


def known() -> dict[str, Path]:
    """The packaged recipes by name."""
    return {path.stem: path for path in sorted(FOLDER.glob("*.yaml"))}


def load(name: str) -> Recipe:
    """The packaged recipe of that name, or the recipe in the YAML file at that path."""
    path = known().get(name) or Path(name)
    if not path.is_file():
        if path.suffix in (".yaml", ".yml"):
            raise RecipeError(f"There is no recipe file {name}.")
        listed = ", ".join(known())
        raise RecipeError(f"There is no recipe {name!r}{did_you_mean(name, known()) or '.'} Recipes: {listed}; or the path of a YAML file.")
    try:
        content = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise RecipeError(f"{path} must hold a mapping with the keys flow, description and config, not {content!r:.80}.")
    try:
        return Recipe.model_validate({**content, "name": path.stem})
    except ValidationError as error:
        raise RecipeError(f"{path}:\n{describe(error, Recipe)}") from error


# Settings


def with_settings(config: dict[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """A copy of `config` with every `path.to.field=value` applied in order; values are read as YAML, so types come out right."""
    changed = _copy(config)
    for setting in settings:
        path, equals, text = setting.partition("=")
        if not equals or not path.strip():
            raise RecipeError(f"--set {setting}: write it as path.to.field=value, for example --set dpo.beta=0.2")
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"--set {setting}: {text!r} is not a YAML value: {error}") from error
        _assign(changed, path.strip().split("."), value, setting)
    return changed


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


def _assign(node: Any, path: list[str], value: Any, setting: str) -> None:
    for depth, name in enumerate(path):
        last = depth == len(path) - 1
        where = ".".join(path[: depth + 1])
        key: Any = name
        if isinstance(node, list):
            if not name.isdigit() or int(name) >= len(node):
                raise RecipeError(f"--set {setting}: {where} is not an element of the list; it has elements 0 to {len(node) - 1}.")
            key = int(name)
        elif not isinstance(node, dict):
            raise RecipeError(f"--set {setting}: {'.'.join(path[:depth])} is {node!r}, which has no fields.")
        if last:
            node[key] = value
            return
        if isinstance(node, dict) and node.get(key) is None:
            node[key] = {}
        node = node[key]


# Flows


def flow_of(recipe: Recipe) -> Flow[..., Any]:
    """The Prefect flow of a recipe; imports its module."""
    module, _, function = recipe.flow.rpartition(":")
    if not module:
        if recipe.flow not in known_flows():
            raise RecipeError(
                f"Recipe {recipe.name}: there is no flow {recipe.flow!r}{did_you_mean(recipe.flow, known_flows()) or '.'} "
                f"Flows: {', '.join(known_flows())}; or package.module:function."
            )
        module, function = f"flows.{recipe.flow}", recipe.flow
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise RecipeError(f"Recipe {recipe.name}: flow {recipe.flow!r}: {error}.") from error
    if found is None or not callable(getattr(found, "fn", None)):
        raise RecipeError(f"Recipe {recipe.name}: {module} has no Prefect flow named {function!r}.")
    return found


def known_flows() -> list[str]:
    """Flows of this folder: files with a function of their own name that is decorated with @flow. Found without importing them."""
    return [path.stem for path in sorted(FOLDER.parent.glob("*.py")) if _holds_flow(path)]


def _holds_flow(path: Path) -> bool:
    functions = [node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)]
    return any(node.name == path.stem and any("flow" in ast.unparse(mark) for mark in node.decorator_list) for node in functions)


def config_class(flow: Flow[..., Any]) -> type[BaseModel]:
    """The class of a flow's parameter `config`."""
    annotation = get_type_hints(flow.fn).get("config")
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise RecipeError(f"The flow {flow.name} needs a parameter `config` annotated with a pydantic model; it has {annotation!r}.")
    return annotation


def configure(recipe: Recipe, settings: Iterable[str] = ()) -> tuple[Flow[..., Any], BaseModel]:
    """The flow of a recipe and its validated config, single values replaced by `settings`."""
    flow = flow_of(recipe)
    model = config_class(flow)
    try:
        return flow, model.model_validate(with_settings(recipe.config, settings))
    except ValidationError as error:
        raise RecipeError(f"The config of {recipe.name} cannot be used:\n{describe(error, model)}") from error
