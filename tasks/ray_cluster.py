"""The Ray cluster that stages may use: which one, joined once a process, and how many workers it has room for.

    POSTTRAIN_RAY            local: a Ray of this process on this machine; auto: the cluster that this host belongs to; HOST:PORT or
                             ray://HOST:10001: that cluster. Unset: none, unless the flow's own task runner is a RayTaskRunner
    POSTTRAIN_RAY_WORKERS    how many beside a stage's own process; unset: as many as the cluster has room for
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

from prefect.context import FlowRunContext

from models.worker import thread_count

ADDRESS, COUNT = "POSTTRAIN_RAY", "POSTTRAIN_RAY_WORKERS"
INSTALL = "pip install -c constraints.txt -e '.[ray]', in the checkout, installs it"

_runners: dict[str, Any] = {}
_unreachable: dict[str, ConnectionError] = {}  # trying takes seconds to minutes, and every stage would
_guard = threading.Lock()


def cluster_address() -> str:
    """local, auto, or where the cluster is; "flow" for the cluster of the flow's own task runner; empty for none."""
    text = os.environ.get(ADDRESS, "").strip()
    if text:
        return text
    runner = getattr(FlowRunContext.get(), "task_runner", None)
    return "flow" if type(runner).__name__ == "RayTaskRunner" else ""


def workers_asked() -> int:
    """POSTTRAIN_RAY_WORKERS, 0 where it is not set.

    Raises:
        ValueError: it is not a number of workers.
    """
    text = os.environ.get(COUNT, "").strip()
    if text and (not text.isdigit() or int(text) < 1):
        raise ValueError(f"{COUNT} is {text!r}: give a number of workers, 1 or more, or leave it out")
    return int(text or 0)


def joined(address: str) -> Any:
    """A started RayTaskRunner; one a process and address, since a local Ray takes seconds to start.

    Raises:
        ValueError: Ray is not installed.
        ConnectionError: there is no cluster at the address, or a local one does not start; asked again, the same.
    """
    with _guard:
        if address in _unreachable:
            raise _unreachable[address]
        if address not in _runners:
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            try:
                import ray  # noqa: F401
                from prefect_ray import RayTaskRunner
            except ImportError as error:
                raise ValueError(f"{ADDRESS} is {address!r}, and Ray is not installed ({error}): {INSTALL}") from error
            try:
                _runners[address] = _started(RayTaskRunner(**_arguments(address)))
            except Exception as error:  # Ray raises this very class where a host does not come up
                _unreachable[address] = ConnectionError(f"Ray ({address}) cannot be joined: {' '.join(str(error).split())[:300]}")
                raise _unreachable[address] from error
        return _runners[address]


def _arguments(address: str) -> dict[str, Any]:
    quiet = {"log_to_driver": False, "logging_level": "WARNING"}
    if address == "local":
        here = {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1", "num_gpus": 0}
        n_cpus = max(len(os.sched_getaffinity(0)), (workers_asked() or 1) * thread_count())
        return {"init_kwargs": {**quiet, **here, "num_cpus": n_cpus}}
    if address in ("auto", "flow"):  # of a flow's own runner, which has joined already, nothing is read
        return {"init_kwargs": {**quiet, "address": "auto"}}
    return {"address": address, "init_kwargs": quiet}


def _started(runner: Any) -> Any:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return runner.__enter__()
    finally:
        # Ray takes SIGTERM for itself, with which Prefect cancels a run.
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


def leave_clusters() -> None:
    """Leave every cluster that this process has joined; a local one ends."""
    with _guard:
        for runner in _runners.values():
            runner.__exit__(None, None, None)
        _runners.clear()
        _unreachable.clear()


def room(cpus: int, gpus: int) -> int:
    """How many workers that need so much each fit on the living hosts; those that are busy are counted: a worker may wait for one."""
    import ray

    found = 0
    for node in ray.nodes():
        has = node["Resources"] if node["Alive"] else {}
        fits = int(has.get("CPU", 0)) // cpus
        found += min(fits, int(has.get("GPU", 0)) // gpus) if gpus else fits
    return found
