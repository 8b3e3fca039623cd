"""`posttrain explain`: why each stage of a run was computed, or was not."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from flows.cli.policies import store
from flows.cli.terminal import duration, out, plain
from tasks import registry
from tasks.key import differences, load_document
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
    made = next((run for run in reversed(earlier) for other in run.stages.values() if other.key == stage.key and other.artifact), None)
    if stage.outcome == "hit":
        return [f"same key as in {made.name}" if made else "its result was in the store"]
    begun = next((run for run in reversed(earlier) if any(other.key == stage.key for other in run.stages.values())), None)
    if made:
        return [f"same key as in {made.name}, but the artifact was missing or damaged"]
    if begun:
        return [f"same key as in {begun.name}, which did not finish it"]
    return _changes(label, stage, recipe, earlier)


def _changes(label: str, stage: StageRecord, recipe: str, earlier: list[RunRecord]) -> list[str]:
    """What is different from the last time that a stage of this label ran, in the same recipe if it can be."""
    before = [run for run in earlier if label in run.stages and run.stages[label].key]
    if not before:
        return ["the first time"]
    last = max(before, key=lambda run: (run.recipe == recipe, run.started))
    keydocs = store().root / "keydocs"
    old, new = (load_document(keydocs, key) if key else None for key in (last.stages[label].key, stage.key))
    if old is None or new is None:
        return [f"its key differs from that in {last.name}, whose parts are not kept any more"]
    return [f"since {last.name}:", *differences(old, new)]
