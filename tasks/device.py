"""Devices, one stage at a time on each: two contending trainings are slower than one after the other, or run out of memory.

The slot is a file lock for each device, which the kernel frees when the flow dies. It is taken after the cache was found empty, so
that hits never queue. With GPUs, Prefect's global limit `gpu` is taken as well: one server can serve several machines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tasks.locks import any_lock
from tasks.store import Store

GPU_LIMIT = "gpu"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Nothing of CUDA is loaded for this."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() and name.strip() != "-1"]
    nodes = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    return [str(number) for number in range(len(nodes))]


@contextmanager
def device_slot(store: Store, on_wait: Callable[[], None]) -> Iterator[dict[str, str]]:
    """Hold a device, waiting for a free one; yields the environment that makes a stage's process see it alone."""
    gpus = visible_gpus()
    names = [f"device-gpu-{gpu}.lock" for gpu in gpus] or ["device-cpu.lock"]
    with _global_slot(len(gpus)), any_lock([store.root / "locks" / name for name in names], on_wait) as taken:
        yield {"CUDA_VISIBLE_DEVICES": gpus[names.index(taken.name)]} if gpus else {}


@contextmanager
def _global_slot(n_gpus: int) -> Iterator[None]:
    if n_gpus == 0:
        yield
        return
    from prefect.concurrency.sync import concurrency

    _ensure_limit(n_gpus)
    with concurrency(GPU_LIMIT, occupy=1, strict=True):  # not strict, a missing limit would mean no limit
        yield


def _ensure_limit(n_gpus: int) -> None:
    """Make the limit at its first use; one that an administrator has set stays as it is."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        except ObjectNotFound:
            try:
                client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=GPU_LIMIT, limit=n_gpus))
            except ObjectAlreadyExists:
                return  # another flow was faster
