"""`posttrain run --dry-run`: which stages would run, why, and what they need; and the same asked before every real run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from rich.table import Table
from rich.text import Text

from flows.cli.policies import store
from flows.cli.terminal import out, plain, size
from models.configs.base_model import BaseModelConfig
from models.memory import Memory, ModelShape, available_bytes, estimate, lengths_of, shape_for, shape_of, snapshot_bytes
from tasks import registry
from tasks.device import visible_gpus
from tasks.plan import PlanEntry, planning

if TYPE_CHECKING:
    from prefect import Flow

    from flows.recipes import Recipe

CHECKPOINTS_TO_MOMENTS = 3  # weights beside the two moments, and the old checkpoint stays until the new one is whole
PARTS = {"weights": "weights", "gradients": "gradients", "optimiser": "optimiser", "activations": "activations", "kv_cache": "KV cache"}
PARTS_WIDTH = 130  # columns of a terminal from which on the parts of the memory are shown


@dataclass(frozen=True)
class Need:
    """What the stages that would be computed need."""

    memory: dict[str, Memory]  # by label, of those that hold a model
    disk_bytes: int


def plan_of(recipe: Recipe, flow: Flow[..., Any], config: BaseModel) -> list[PlanEntry]:
    """What each stage call of a flow would do, found by calling its body without computing."""
    with registry.rehearsal(recipe.name), planning() as plan:
        flow.fn(config)
    return plan.entries


def need_of(entries: Sequence[PlanEntry]) -> Need:
    """Estimates for the misses of a plan, as far as the shape of the model is known beforehand."""
    shape = _shape(entries)
    if shape is None:
        return Need({}, 0)
    lengths = lengths_of(*(store().folder(entry.artifact.digest) for entry in entries if entry.artifact))
    estimates = {entry.label: estimate(entry.stage, entry.config, shape, lengths) for entry in entries if entry.outcome == "miss"}
    memory = {label: need for label, need in estimates.items() if need is not None}
    trained = sum(need.optimiser > 0 for need in memory.values())
    checkpoints = max((CHECKPOINTS_TO_MOMENTS * need.optimiser for need in memory.values()), default=0)
    weights = shape.parameters * shape.weight_bytes
    snapshots = sum(snapshot_bytes(entry.config, weights) for entry in entries if entry.outcome == "miss")
    return Need(memory, trained * weights + checkpoints + snapshots)


def _shape(entries: Sequence[PlanEntry]) -> ModelShape | None:
    """The shape of the base model, which every policy of a flow shares."""
    for entry in entries:
        if isinstance(entry.config, BaseModelConfig):
            folder = store().folder(entry.artifact.digest) if entry.artifact else None
            return shape_of(folder) if folder is not None and (folder / "config.json").is_file() else shape_for(entry.config)
    return None


def require_room(need: Need) -> None:
    """Say before the work starts that memory or disk will not do.

    Raises:
        ValueError: with what is needed, what is there, and what to do.
    """
    store().require_space(need.disk_bytes, "the run")
    if not need.memory or visible_gpus():  # the memory of a GPU is not the machine's
        return
    label, largest = max(need.memory.items(), key=lambda item: item[1].total)
    free = available_bytes()
    if largest.total > free:
        raise ValueError(
            f"{label} needs about {size(largest.total)} of memory ({_parts(largest)}) and {size(free)} are free: "
            f"lower its micro_batch_tokens or sampling.max_rows, choose a smaller base_model, or free memory."
        )


def _parts(memory: Memory) -> str:
    return ", ".join(f"{title} {size(getattr(memory, name))}" for name, title in PARTS.items() if getattr(memory, name))


def _shown(memory: Memory | None, name: str) -> str:
    return size(getattr(memory, name)) if memory and getattr(memory, name) else ""


def show_plan(recipe: Recipe, flow: Flow[..., Any], config: BaseModel) -> int:
    """Print the plan of a run."""
    entries = plan_of(recipe, flow, config)
    need = need_of(entries)
    table = Table(box=None, pad_edge=False, header_style="bold")
    parts = PARTS if out.width >= PARTS_WIDTH else {}
    for column in ("stage", "cache", *parts.values(), "memory", "why"):
        table.add_column(column, overflow="fold", justify="left" if column in ("stage", "cache", "why") else "right")
    for entry in entries:
        memory = need.memory.get(entry.label)
        outcome = Text(entry.outcome, "green" if entry.outcome == "hit" else "yellow")
        sizes = [_shown(memory, name) for name in (*parts, "total")]
        table.add_row(Text(entry.label), outcome, *sizes, Text(plain(entry.reason)))
    out.print(table)
    misses = sum(entry.outcome == "miss" for entry in entries)
    out.print(f"{len(entries)} stages: {len(entries) - misses} computed before, {misses} to compute. Nothing was run.")
    disk = shutil.disk_usage(store().root).free
    out.print(f"Free: {size(available_bytes())} of memory, {size(disk)} of disk; the run would add about {size(need.disk_bytes)}.")
    return 0
