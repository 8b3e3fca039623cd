"""Devices, one stage at a time on each: two contending trainings are slower than one after the other, or run out of memory.

The slot is a file lock for each device, which the kernel frees when the flow dies. It is taken after the cache was found empty, so
that hits never queue. With GPUs, Prefect's global limit `gpu` is taken as well: one server can serve several machines.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path

from tasks.locks import any_lock, file_lock
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
def device_slot(store: Store, on_wait: Callable[[], None], count: int = 1) -> Iterator[dict[str, str]]:
    """Hold ``count`` devices, waiting for free ones; yields the environment that makes a stage's process see them alone.

    The ranks of a stage on a processor share it.

    Raises:
        ValueError: there are GPUs, and fewer than that.
    """
    gpus = visible_gpus()
    if gpus and count > len(gpus):
        raise ValueError(f"{count} devices are asked for and {len(gpus)} are visible ({', '.join(gpus)}): lower parallel.ranks")
    locks = [store.root / "locks" / f"device-gpu-{gpu}.lock" for gpu in gpus] or [store.root / "locks" / "device-cpu.lock"]
    with _global_slot(len(gpus), count), ExitStack() as held:
        with file_lock(store.root / "locks" / "devices.lock") if count > 1 else nullcontext():  # two that gather would wait for each other
            taken = [held.enter_context(any_lock(locks, on_wait)) for _ in range(count if gpus else 1)]
        yield {"CUDA_VISIBLE_DEVICES": ",".join(gpus[locks.index(path)] for path in taken)} if gpus else {}


@contextmanager
def _global_slot(n_gpus: int, count: int) -> Iterator[None]:
    if n_gpus == 0:
        yield
        return
    from prefect.concurrency.sync import concurrency

    _ensure_limit(n_gpus)
    with concurrency(GPU_LIMIT, occupy=count, strict=True):  # not strict, a missing limit would mean no limit
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
