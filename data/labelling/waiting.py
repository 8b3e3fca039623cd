"""Which flow runs wait for the labels of a task: written beside the labels, so that the page's server can wake them."""

import time
from dataclasses import dataclass
from typing import Literal

from data.labelling.store import LabelStore

State = Literal["paused", "suspended", "done"]


@dataclass(frozen=True, slots=True)
class WaitingRun:
    """A flow run, its name, the Prefect API that knows it, and whether it waits: as a process (paused) or without one (suspended).

    ``owner`` names the lock that the process holds, so that one that was killed is not woken.
    """

    flow_run: str
    name: str
    api: str
    state: State
    owner: str = ""


def note_run(store: LabelStore, run: WaitingRun) -> None:
    """Set what is known of a run."""
    with store.database.writing() as connection:
        values = (run.flow_run, run.name, run.api, run.state, run.owner, time.time())
        connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?, ?, ?, ?)", values)


def runs(store: LabelStore) -> list[WaitingRun]:
    """Every run that has asked for these labels, the latest last."""
    with store.database.reading() as connection:
        rows = connection.execute("SELECT flow_run, name, api, state, owner FROM runs ORDER BY at, flow_run").fetchall()
    return [WaitingRun(*row) for row in rows]


def waiting_runs(store: LabelStore) -> list[WaitingRun]:
    """Those that wait."""
    return [run for run in runs(store) if run.state != "done"]
