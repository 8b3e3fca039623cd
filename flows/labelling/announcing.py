"""An event in Prefect for every label that a person gives, so that an automation can start a retraining when enough are there.

event     posttrain.labels.given
resource  posttrain.labels.TASK
payload   labels: how many the task has; wanted: how many were asked for
"""

from __future__ import annotations

from data.labelling.store import LabelStore

EVENT = "posttrain.labels.given"


def announce(store: LabelStore, labels: int = 1) -> None:
    """Send an event for each of so many new labels, in the background; an API that is away is logged, and holds nobody up."""
    from prefect.events import emit_event

    progress = store.progress()
    resource = {"prefect.resource.id": f"posttrain.labels.{store.name}", "prefect.resource.name": store.name}
    for _ in range(labels):
        emit_event(EVENT, resource, payload={"labels": progress.labels, "wanted": progress.wanted})
