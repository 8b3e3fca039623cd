"""`posttrain artifacts`: what lies in the store, whether it is whole, and what no run needs any more."""

from __future__ import annotations

import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from flows.cli.policies import resolve, store
from flows.cli.terminal import complain, out, size, write
from tasks import decisions, registry
from tasks.locks import remove_lock
from tasks.registry import InUse, RunRecord, alone
from tasks.store import Artifact, ArtifactInvalid, Store

# Each is called <stage key>.<something>.
_FILES_OF_A_KEY = ("history/*.jsonl", "costs/*.json", "keydocs/*.json", "logs/*-*.log", "records/*/*")


def list_artifacts(run: str | None, kind: str | None) -> int:
    """Print the stored artifacts, the largest last."""
    holders = _holders([registry.find(run)] if run else registry.runs())
    shown = [a for a in store().list() if kind in (None, a.kind) and (run is None or a.digest in holders)]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("digest", "left"), ("kind", "left"), ("size", "right"), ("files", "right"), ("runs", "left")):
        table.add_column(name, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for artifact in sorted(shown, key=lambda artifact: artifact.size_bytes):
        names = ", ".join(holders.get(artifact.digest, [])) or "none: artifacts gc removes it"
        table.add_row(artifact.digest[:12], artifact.kind, size(artifact.size_bytes), str(artifact.n_files), names)
    out.print(table)
    out.print(f"{len(shown)} artifacts, {size(sum(a.size_bytes for a in shown))}, in {store().root}", soft_wrap=True)
    return 0


def _holders(runs: list[RunRecord]) -> dict[str, list[str]]:
    """digest -> `run/label` of everything that has it; of several runs of a recipe that share it the last."""
    latest: dict[str, dict[tuple[str, str], str]] = defaultdict(dict)
    for run in runs:
        for label, artifact in run.artifacts().items():
            latest[artifact.digest][run.recipe, label] = f"{run.name}/{label}"
    return {digest: list(names.values()) for digest, names in latest.items()}


def verify_artifacts(prefix: str | None) -> int:
    """Hash every byte again; 1 if something is damaged."""
    with registry.in_use():
        artifacts = [store().find(prefix)] if prefix else store().list()
        damaged = 0
        for artifact in artifacts:
            problems = store().problems(artifact, "full")
            damaged += bool(problems)
            if problems:
                complain(f"{artifact.kind} {artifact.digest[:12]}: {', '.join(problems)}")
    out.print(f"{len(artifacts) - damaged} of {len(artifacts)} artifacts are whole.")
    if damaged:
        out.print("The damaged ones are noticed before they are used: the next run that needs one computes it anew.")
    return 1 if damaged else 0


def artifact_path(name: str) -> int:
    """Print the folder of an artifact."""
    try:
        write(f"{resolve(name).folder.resolve()}\n")
    except ArtifactInvalid as error:
        complain(str(error))
        return 1
    return 0


# Garbage collection


@dataclass(frozen=True)
class Garbage:
    """What no kept run needs."""

    runs: list[str]
    artifacts: list[Artifact]
    folders: list[Path]  # checkpoints of stages that no kept run has begun and not finished
    files: list[Path]  # histories, key documents, logs and cache records of stage keys that no kept run has
    locks: list[Path]  # of those stage keys
    size_bytes: int


def collect(keep: int | None, dry_run: bool) -> int:
    """Remove garbage. While a run lives nothing is removed: what it will need is not known before it asks for it."""
    try:
        with alone():
            garbage = find_garbage(store(), keep)
            abandoned = 0 if dry_run else _remove(store(), garbage)
    except InUse as error:
        complain(str(error))
        return 1
    verb = "Would remove" if dry_run else "Removed"
    lines = [f"{artifact.kind} {artifact.digest[:12]}, {size(artifact.size_bytes)}" for artifact in garbage.artifacts]
    lines += [f"the checkpoints of {folder.name}" for folder in garbage.folders]
    lines += [f"the record of the run {name}" for name in garbage.runs]
    lines += [f"{abandoned} unfinished folders of killed processes"] if abandoned else []
    for line in lines:
        out.print(f"{verb} {line}", soft_wrap=True)
    out.print(f"{verb} {len(garbage.artifacts)} artifacts; {size(garbage.size_bytes)} in all.")
    return 0


def _remove(store: Store, garbage: Garbage) -> int:
    """Remove it, records first: none must name what is gone. Returns how many unfinished folders of killed processes went with it."""
    for name in garbage.runs:
        registry.remove(name)
    for file in garbage.files:
        file.unlink(missing_ok=True)
    for artifact in garbage.artifacts:
        store.remove(artifact.digest)
    for folder in garbage.folders:
        shutil.rmtree(folder)
    for lock in garbage.locks:
        remove_lock(lock)
    return store.clean_staging()


def find_garbage(store: Store, keep: int | None) -> Garbage:
    """What can go if the last `keep` runs of each recipe stay (None: all of them). Champions stay, the earlier ones too."""
    kept, dropped = _divide(registry.runs(), keep)
    needed = {artifact.digest for run in kept for artifact in run.artifacts().values()} | decisions.kept_digests()
    stages = [stage for run in kept for stage in run.stages.values()]
    keys = {stage.key for stage in stages}
    unfinished = {stage.key for stage in stages if stage.outcome in ("running", "failed")}
    artifacts = [artifact for artifact in store.list() if artifact.digest not in needed]
    folders = [folder for folder in sorted((store.root / "checkpoints").iterdir()) if folder.name not in unfinished]
    files = [file for pattern in _FILES_OF_A_KEY for file in sorted(store.root.glob(pattern)) if file.stem not in keys]
    inside = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    n_bytes = sum(a.size_bytes for a in artifacts) + sum(file.stat().st_size for file in (*inside, *files))
    locks = [lock for lock in sorted((store.root / "locks").glob("key-*.lock")) if lock.stem.removeprefix("key-") not in keys]
    return Garbage([run.name for run in dropped], artifacts, folders, files, locks, n_bytes)


def _divide(runs: list[RunRecord], keep: int | None) -> tuple[list[RunRecord], list[RunRecord]]:
    by_recipe: dict[str, list[RunRecord]] = defaultdict(list)
    for run in runs:
        by_recipe[run.recipe].append(run)
    kept = [run for group in by_recipe.values() for run in (group if keep is None else group[len(group) - keep :] if keep else [])]
    live = [run for run in runs if run.status == "running"]
    names = {run.name for run in (*kept, *live)}
    return [run for run in runs if run.name in names], [run for run in runs if run.name not in names]
