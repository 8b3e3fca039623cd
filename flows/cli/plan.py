"""`posttrain run --dry-run`: which stages would run, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from flows.cli.terminal import out, plain

if TYPE_CHECKING:
    from prefect import Flow

    from flows.recipes import Recipe
    from tasks.plan import PlanEntry


def plan_of(recipe: Recipe, flow: Flow[..., Any], config: BaseModel) -> list[PlanEntry]:
    """What each stage call of a flow would do, found by calling its body without computing."""
    from tasks import registry
    from tasks.plan import planning

    with registry.rehearsal(recipe.name), planning() as plan:
        flow.fn(config)
    return plan.entries


def show_plan(recipe: Recipe, flow: Flow[..., Any], config: BaseModel) -> int:
    """Print the plan of a run."""
    entries = plan_of(recipe, flow, config)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "cache", "why"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        table.add_row(Text(entry.label), Text(entry.outcome, "green" if entry.outcome == "hit" else "yellow"), Text(plain(entry.reason)))
    out.print(table)
    misses = sum(entry.outcome == "miss" for entry in entries)
    out.print(f"{len(entries)} stages: {len(entries) - misses} computed before, {misses} to compute. Nothing was run.")
    return 0
