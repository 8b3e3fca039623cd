"""`posttrain recipes`: what there is, and every field of one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from rich.table import Table

from flows import recipes
from flows.cli.terminal import out
from tasks.home import configure_environment


def show_recipes() -> int:
    """Print name, flow and description of the packaged recipes."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("recipe", "flow", "what it does"):
        table.add_column(name, overflow="fold")
    for name in recipes.known():
        recipe = recipes.load(name)
        table.add_row(name, recipe.flow, recipe.description)
    out.print(table)
    out.print("Run one: posttrain run NAME. A recipe of your own is a YAML file: posttrain run mine.yaml")
    return 0


def show_recipe(name: str) -> int:
    """Print every field of a recipe's config: path, value, meaning. Values that differ from the flow's default are bold."""
    configure_environment()
    recipe = recipes.load(name)
    flow, config = recipes.configure(recipe)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("field", "value", "meaning"):
        table.add_column(column, overflow="fold")
    for path, value, default, meaning in fields(config):
        table.add_row(path, str(value) if value == default else f"[bold]{value}[/bold]", meaning)
    out.print(f"[bold]{name}[/bold]: {recipe.description}\nflow {flow.name}; replace a value with --set field=value\n")
    out.print(table)
    return 0


def fields(config: BaseModel, path: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """(path, value, default, description) of every field that holds no further fields."""
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if isinstance(value, BaseModel):
            yield from fields(value, f"{path}{name}.")
        else:
            default = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
            yield f"{path}{name}", _bare(value), _bare(default), field.description or ""


def _bare(value: Any) -> Any:
    """Models inside lists as plain dicts of what was set."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", exclude_defaults=True)
    return [_bare(item) for item in value] if isinstance(value, list | tuple) else value
