"""Labels of people inside a flow: it pauses until enough are in, goes on by itself, and holds no device meanwhile.

    judgements = await_labels(candidates, config.labelling, seed=seed)      # candidates.parquet in, judgements.parquet out

The labels lie in one file for each set of candidates, so that a run that was killed while it waited, or another run that needs the same
labels, goes on from what is there. People label on the page of `posttrain label RUN`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from data.judgements import Candidates
from data.labelling.snapshot import write_labels
from data.labelling.store import LabelStore, Progress
from data.labelling.waiting import note_run, waiting_runs
from data.tables import read_table
from flows.labelling.pausing import Paused, announce, pause, suspend
from flows.labelling.tasks import register, task_file
from models.configs.labelling import LabellingConfig
from tasks import process, provenance, registry
from tasks.home import home
from tasks.people_labels import people_labels
from tasks.plan import Pending, current_plan
from tasks.stage import Stage
from tasks.store import Artifact, Store

LOOK_EVERY_S = 1.0
LABEL = "people"

log = logging.getLogger(__name__)


def await_labels(candidates: Artifact, config: LabellingConfig, *, seed: int, label: str = "") -> Artifact:
    """Labels of people for candidates, as judgements. Pauses the flow run until enough are in; not at all if they are.

    Args:
        candidates: artifact of kind candidates, with candidates.parquet.
        config: how many labels, of whom, and how to wait.
        seed: of the order in which items and answers are shown.
        label: tells several uses in one flow apart.

    Returns:
        Artifact of kind judgements, with judgements.parquet, agreement.json and agreement.md.

    Raises:
        ValueError: there is nothing to choose among the candidates, or a file that the configuration names cannot be used.
        TimeoutError: not enough labels in ``patience_h``.
    """
    stage = people_labels.named(label) if label else people_labels
    if current_plan() is not None:
        return _planned(stage, candidates, config, seed)
    table = read_table(Store(home() / "store").path(candidates) / "candidates.parquet", Candidates)
    tasks = register(table, config, seed)
    if not tasks.progress().enough:
        _wait(tasks, config, stage.label)
    _settle(tasks)
    return stage(config.report, candidates, _stored(tasks), seed=seed)


def asking(config: LabellingConfig, seed: int) -> Callable[[Artifact], Artifact]:
    """``await_labels`` with its settings, for ``flows.preferences.prefer``."""
    return lambda candidates: await_labels(candidates, config, seed=seed)


def _planned(stage: Stage, candidates: Artifact, config: LabellingConfig, seed: int) -> Artifact:
    """What a plan shows: the stage's result if the labels that it would take are there."""
    pending = cast(Artifact, Pending("labels", LABEL, "labels"))
    if isinstance(candidates, Pending):
        return stage(config.report, candidates, pending, seed=seed)
    table = read_table(Store(home() / "store").path(candidates) / "candidates.parquet", Candidates)
    file = task_file(table)
    enough = file.exists() and LabelStore(file).progress().enough
    return stage(config.report, candidates, _stored(LabelStore(file)) if enough else pending, seed=seed)


def _stored(store: LabelStore) -> Artifact:
    """The labels as they stand, as an artifact: the same labels have the same digest, so that the stage is computed once for them."""
    artifacts = Store(home() / "store")
    staging = artifacts.new_staging()
    try:
        folder = staging / "out"
        folder.mkdir()
        given = store.given()
        write_labels(folder, given)
        return artifacts.put(folder, "labels", {"task": store.name, "labels": sum(bool(row.ranks) for row in given)})
    finally:
        artifacts.discard(staging)


# Waiting


def _wait(store: LabelStore, config: LabellingConfig, label: str) -> None:
    """Wait until enough labels are in; or, with at least one, until somebody resumes the run by hand."""
    live = registry.current_run()
    flow_run: Any = provenance.flow_run()
    name = live.name if live else flow_run.name if flow_run else store.name
    command = f"posttrain label {name if live else store.name}"
    wanted = store.progress()
    _say(f"{name} waits for {wanted.wanted - wanted.labels} labels of people. Label on the page of: {command}")
    end = time.monotonic() + 3600 * config.patience_h
    if flow_run is None:
        _watch(store, label, end, None)
        return
    if config.while_waiting == "suspend":
        if _was_suspended(store, str(flow_run.id)) and store.progress().labels:
            return  # resumed by hand: on with what is there
        announce(store, config.address, command)
        suspend(store, name, config.patience_h)
    announce(store, config.address, command)
    while True:
        progress = _watch(store, label, end, pause(store, name, config.patience_h))
        if progress.enough or progress.labels:
            return
        _say(f"{name} was resumed without a single label: it waits again.")


def _settle(store: LabelStore) -> None:
    """Note that this flow run does not wait any more, if it did."""
    flow_run = provenance.flow_run()
    for run in waiting_runs(store):
        if flow_run is not None and run.flow_run == str(flow_run.id):
            note_run(store, replace(run, state="done"))


def _was_suspended(store: LabelStore, flow_run: str) -> bool:
    return any(run.flow_run == flow_run and run.state == "suspended" for run in waiting_runs(store))


def _watch(store: LabelStore, label: str, end: float, paused: Paused | None) -> Progress:
    """Look at the labels until there are enough, or the run is resumed from elsewhere; then the run is running again."""
    begin = time.monotonic()
    while not (progress := store.progress()).enough:
        if paused is not None and paused.was_resumed():
            return progress
        _require_patience(end, progress)
        process.tell(process.Progress(label, "waiting", progress.labels, progress.wanted, seconds=time.monotonic() - begin))
        time.sleep(LOOK_EVERY_S)
    while paused is not None and not paused.resume():
        _require_patience(end, progress)
        time.sleep(LOOK_EVERY_S)
    return progress


def _require_patience(end: float, progress: Progress) -> None:
    if time.monotonic() > end:
        raise TimeoutError(f"{progress.labels} of {progress.wanted} labels were there when the patience of the run (patience_h) ended")


def _say(text: str) -> None:
    """A line that is seen also without --verbose, since a person has to act."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    try:
        get_run_logger().warning("%s", text)
    except MissingContextError:
        log.warning("%s", text)
