"""Names that people give to artifacts: `sft`, `quickstart/sft`, `quickstart-3/evaluate[dpo]`, the first characters of a digest.

`dpo@40` is the snapshot of a policy after 40 updates.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from models.snapshots import read_snapshots
from tasks import registry
from tasks.home import home
from tasks.store import Artifact, Store


class Named(NamedTuple):
    """A folder, what to call it, and the artifact it is if it is one."""

    folder: Path
    title: str
    artifact: Artifact | None


def store() -> Store:
    """The artifact store of the output folder."""
    return Store(home() / "store")


def resolve(name: str) -> Named:
    """The artifact, or the folder, that a name means; an artifact is verified. A snapshot is a folder inside its policy's.

    Raises:
        ValueError: the name means nothing, with the names that do.
    """
    whole, at, step = name.rpartition("@")
    if not at or not step.isdecimal() or Path(name).expanduser().is_dir():
        return _resolve(name)
    named = _resolve(whole)
    found = read_snapshots(named.folder)
    if int(step) not in found:
        raise ValueError(f"{named.title} has no snapshot of step {step}. It has: {', '.join(map(str, found))}.")
    return Named(found[int(step)], f"{named.title} after {int(step)} updates", None)


def _resolve(name: str) -> Named:
    if name.startswith((".", "/", "~")):
        folder = Path(name).expanduser()
        if not folder.is_dir():
            raise ValueError(f"There is no folder {name}.")
        return Named(folder, name, None)
    found = _of_run(name)
    if found is None and re.fullmatch(r"[0-9a-f]{4,64}", name):
        found = store().find(name), name[:12]
    if found is None:
        if Path(name).is_dir():
            return Named(Path(name), name, None)
        raise ValueError(f"Nothing is called {name!r}. {_choices()}")
    artifact, title = found
    return Named(store().path(artifact), f"{title} ({artifact.kind} {artifact.digest[:12]})", artifact)


def _of_run(name: str) -> tuple[Artifact, str] | None:
    """RUN/LABEL, or LABEL in the latest run that has it."""
    run_name, slash, label = name.partition("/")
    if not slash:
        holding = [run for run in registry.runs() if name in run.artifacts()]
        return (holding[-1].artifacts()[name], f"{holding[-1].name}/{name}") if holding else None
    if not any(run_name in (run.name, run.recipe, "latest") for run in registry.runs()):
        return None
    run = registry.find(run_name)
    if label not in run.artifacts():
        raise ValueError(f"The run {run.name} has no {label!r}. It has: {', '.join(run.artifacts()) or 'nothing yet'}.")
    return run.artifacts()[label], f"{run.name}/{label}"


def _choices() -> str:
    every = registry.runs()
    if not every:
        return "Nothing was run yet; start with: posttrain run quickstart"
    labels = ", ".join(every[-1].artifacts()) or "nothing yet"
    return f"The latest run, {every[-1].name}, has: {labels}; or give RUN/LABEL, a digest or a folder."
