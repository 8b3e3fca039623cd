"""Cancel in Prefect's pages, for flow processes that nobody else stops: those of `posttrain run`, and those whose worker died.

A worker and `posttrain serve` stop their own: they see the state Cancelling, send SIGTERM, and kill after 30 seconds. Here a thread of the
flow's process looks at the state every few seconds and sends that SIGTERM, if nobody else has.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING
from uuid import UUID

import httpx

from tasks import claims

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

log = logging.getLogger(__name__)

EVERY_S = 5.0
WORKER_S = 15.0  # for a worker to act, which takes it a second, or ten without its connection to the server's events

_ending = threading.Event()

_obeyed: set[tuple[int, UUID]] = set()


@contextlib.contextmanager
def uninterrupted(error: BaseException) -> Iterator[None]:
    """While a stage is stopped because of an error; after that too, if the error is the end of the run."""
    _ending.set()
    try:
        yield
    finally:
        if isinstance(error, Exception):
            _ending.clear()


def obey_cancel(run: FlowRun) -> None:
    """Stop this process soon after its flow run is cancelled. Again: nothing more."""
    key = os.getpid(), run.id
    if key in _obeyed or run.parent_task_run_id is not None:  # of a subflow the outermost decides
        return
    _obeyed.add(key)
    patience_s = 0.0 if run.deployment_id is None else WORKER_S
    context = contextvars.copy_context()  # Prefect's settings
    threading.Thread(target=context.run, args=(_follow, run.id, patience_s), name="obey-cancel", daemon=True).start()


def _follow(run_id: UUID, patience_s: float) -> None:
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(httpx_settings={}, sync_client=True) as client:  # its own: the flow's is closed at the end of the flow
        since = 0.0
        while True:
            time.sleep(EVERY_S)
            if _ending.is_set():
                continue
            try:
                state = client.read_flow_run(run_id).state
            except httpx.HTTPError as error:
                log.debug("whether the run was cancelled is not known: %s", error)
                continue
            except ObjectNotFound:  # deleted
                return
            if state is None or not state.is_cancelling():
                if state is not None and state.is_final():
                    return
                since = 0.0
                continue
            since = since or time.monotonic()
            if time.monotonic() - since >= patience_s and not _ending.is_set():
                _stop()
                return


def _stop() -> None:
    log.warning("The run was cancelled: it is stopped, finished stages are kept")
    mine = claims.claim()
    if mine is not None:
        (mine / "cancelled-").touch()  # Prefect takes a SIGTERM that it did not send for a crash; `tasks.watch` puts that right
    os.kill(os.getpid(), signal.SIGTERM)
