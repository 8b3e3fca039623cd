"""`posttrain explain`: why each stage of a run was computed, or was not."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from flows.cli.policies import store
from flows.cli.terminal import duration, out, plain
from tasks import registry
from tasks.reasons import cause_of
from tasks.registry import RunRecord, StageRecord

COLOURS = {"hit": "green", "computed": "yellow", "resumed": "yellow", "failed": "red", "running": "cyan"}


def explain(name: str) -> int:
    """Print outcome, time and reason of every stage of a run."""
    run = registry.find(name)
    earlier = [other for other in registry.runs() if other.started < run.started]
    began = f"{run.started.astimezone():%Y-%m-%d %H:%M}"
    out.print(f"[bold]{run.name}[/bold], recipe {run.recipe}, began {began}, {run.status}", soft_wrap=True)
    if run.error:
        out.print(Text(plain(run.error), style="red"), soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stage", "outcome", "time", "why"):
        table.add_column(column, overflow="fold", justify="right" if column == "time" else "left")
    for label, stage in run.stages.items():
        why = reasons(label, stage, run.recipe, earlier)
        table.add_row(Text(label), Text(stage.outcome, COLOURS[stage.outcome]), duration(stage.seconds), Text(plain("\n".join(why))))
    out.print(table)
    return 0


def reasons(label: str, stage: StageRecord, recipe: str, earlier: list[RunRecord]) -> list[str]:
    """Why a stage had the outcome that it had, in the light of the runs before it (the oldest first)."""
    return cause_of(label, stage, recipe, earlier, store().root / "keydocs").lines()
