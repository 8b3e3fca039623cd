"""`posttrain status`: what runs now in this output folder, started from here, from the Prefect UI or by a schedule."""

from __future__ import annotations

import json
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from flows.cli.policies import store
from flows.cli.terminal import duration, out, plain
from tasks import registry
from tasks.progress import FILE
from tasks.registry import RunRecord
from tasks.wording import about

FAILED = 1
NOT_RUNNING = 3
SILENT_S = 120.0  # what follows a stage writes twice a minute at least


def status(name: str) -> int:
    """Print the runs that live, or the one of that name.

    Returns:
        0 while it, or one of them, is running; 3 if nothing is, or it finished; 1 if it failed, was stopped or was killed.
    """
    shown = [registry.find(name)] if name else [run for run in registry.runs() if run.status == "running"]
    if not shown:
        out.print("Nothing is running here. The last runs: posttrain explain")
        return NOT_RUNNING
    for run in shown:
        _show(run)
    if any(run.status == "running" for run in shown):
        return 0
    return NOT_RUNNING if shown[-1].status == "finished" else FAILED


def _show(run: RunRecord) -> None:
    is_live = run.status == "running"
    end = datetime.now(UTC) if is_live else run.ended
    lasts = f" for {duration((end - run.started).total_seconds())}" if end is not None else ""
    out.print(f"[bold]{run.name}[/bold], recipe {plain(run.recipe)}, {run.status}{lasts}", soft_wrap=True)
    if run.error:
        out.print(Text(plain(run.error), style="red"), soft_wrap=True)
    running = {label: stage for label, stage in run.stages.items() if stage.outcome == "running"} if is_live else {}
    for label, stage in running.items():
        out.print(Text(plain(f"  {label}: {_now(store().root / 'checkpoints' / str(stage.key), run)}")), soft_wrap=True)
    if is_live and not running:
        out.print("  No stage is running: it is between two, or waits for people.")
    counts = Counter("computed before" if stage.outcome == "hit" else stage.outcome for stage in run.stages.values())
    out.print("  Stages: " + (", ".join(f"{number} {outcome}" for outcome, number in counts.items()) or "none yet"))


def _now(folder: Path, run: RunRecord) -> str:
    """How far a running stage is, in words."""
    told = _told(folder / FILE)
    age_s = time.time() - told.get("time", 0.0)
    if time.time() - age_s < run.started.timestamp():  # an earlier run's word, or none
        return "begins, or waits for the device or for another run"
    left_s = told.get("left_s")
    left = f"{about(left_s - age_s)} left" if left_s is not None and left_s > age_s else ""
    silent = f"nothing heard of it for {duration(age_s)}" if age_s > SILENT_S else ""
    return ", ".join(filter(None, [told.get("steps"), left, told.get("place"), silent])) or "running"


def _told(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
