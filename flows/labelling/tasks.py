"""Labelling tasks of the output folder: where their files lie, how one is made of candidates, and which one a name means."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.judgements import Candidates
from data.labelling.judgements import gold_items, items_of
from data.labelling.records import content_digest
from data.labelling.store import LabelStore
from data.labelling.waiting import runs
from data.tables import read_table
from models.configs.labelling import LabellingConfig
from tasks import registry
from tasks.home import home
from tasks.store import Store


def folder() -> Path:
    """Where the files of labelling tasks lie."""
    return home() / "labels"


def known() -> list[LabelStore]:
    """Every labelling task, by name."""
    return [LabelStore(path) for path in sorted(folder().glob("*.db"))]


def task_file(candidates: Sequence[Candidates]) -> Path:
    """The file of the task of these candidates. It depends on them alone: labels outlive a changed setting and a killed run."""
    return folder() / f"labels-{content_digest(candidates)[:12]}.db"


def register(candidates: Sequence[Candidates], config: LabellingConfig, seed: int) -> LabelStore:
    """The task of these candidates, made or brought up to date.

    Raises:
        ValueError: there is nothing to choose in any of them; guidelines or the file of known answers cannot be used.
    """
    items = items_of(candidates)
    if not items:
        raise ValueError(
            f"none of {len(candidates)} sets of candidates holds two different completions, so there is nothing to label: "
            "sample more of them, or at a higher temperature"
        )
    settings = config.settings(seed)
    gold = gold_items(Path(config.gold).expanduser()) if config.gold else []
    store = LabelStore(task_file(candidates))
    store.register([*items, *gold], settings)
    return store


def find(name: str) -> LabelStore:
    """The task that a name means: a file or folder with candidates.parquet, a task, a run or a recipe, RUN/LABEL, or a digest.

    Raises:
        ValueError: it means none, or more than one, with those that there are.
    """
    path = Path(name).expanduser()
    if path.is_file() or (path / "candidates.parquet").is_file():
        return _of_table(path if path.is_file() else path / "candidates.parquet")
    if (folder() / f"{name}.db").is_file():
        return LabelStore(folder() / f"{name}.db")
    found = _of_run(name)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"{name} has {len(found)} labelling tasks; name one of them: {', '.join(store.name for store in found)}")
    listed = ", ".join(store.name for store in known()) or "none yet"
    raise ValueError(
        f"{name!r} has nothing to label: it is no run that waits for labels or holds candidates, no labelling task ({listed}), "
        "and no candidates.parquet"
    )


def _of_table(path: Path) -> LabelStore:
    """The task of a table; made with the default settings where it is new."""
    candidates = read_table(path, Candidates)
    file = task_file(candidates)
    return LabelStore(file) if file.exists() else register(candidates, LabellingConfig(), seed=0)


def _of_run(name: str) -> list[LabelStore]:
    """The tasks that a run has asked for, or those of the candidates that it holds."""
    store = Store(home() / "store")
    run_name, _, label = name.partition("/")
    run = next((run for run in reversed(registry.runs()) if run_name in (run.name, run.recipe, "latest")), None)
    if run is None:
        artifact = store.find(name) if all(letter in "0123456789abcdef" for letter in name) and len(name) > 3 else None
        held = [artifact] if artifact is not None else []
    else:
        asked = [task for task in known() if run.name in [waiting.name for waiting in runs(task)]]
        if asked and not label:
            return asked
        held = [artifact for key, artifact in run.artifacts().items() if artifact.kind == "candidates" and label in ("", key)]
    return [_of_table(store.path(artifact) / "candidates.parquet") for artifact in held]
