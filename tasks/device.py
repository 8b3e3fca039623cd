"""Devices, one stage at a time on each: two contending trainings are slower than one after the other, or run out of memory.

The slot is a file lock for each device, which the kernel frees when the flow dies. It is taken after the cache was found empty, so
that hits never queue. With GPUs, Prefect's global limit `gpu` is taken as well: one server can serve several machines. POSTTRAIN_LIMIT
names another limit, for machines of another kind or without GPUs; empty, none is taken.

Whoever waits stands in a queue of this machine, and only its head looks for devices and takes all that it needs or none: two stages
that want two devices each cannot hold one each, and one that wants all is not overtaken for ever by those that want one.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tasks import provenance
from tasks.claims import boot_id
from tasks.locks import file_lock, is_free, some_locks
from tasks.slot import global_slot
from tasks.store import Store

GPU_LIMIT = "gpu"


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them. Nothing of CUDA is loaded for this."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name.strip() for name in chosen.split(",") if name.strip() and name.strip() != "-1"]
    nodes = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    return [str(number) for number in range(len(nodes))]


def limit_name() -> str:
    """Prefect's limit that a stage takes here: POSTTRAIN_LIMIT, else `gpu` where there are GPUs; empty for none."""
    return os.environ.get("POSTTRAIN_LIMIT", GPU_LIMIT if visible_gpus() else "")


def device_lock(locks: Path, device: str) -> Path:
    """The lock of a device of this machine, its containers included.

    Other machines that share the folder have devices of the same numbers.
    """
    return locks / f"device-{boot_id()[:8]}-{device}.lock"


@contextmanager
def device_slot(store: Store, on_wait: Callable[[str], None], count: int = 1) -> Iterator[dict[str, str]]:
    """Hold `count` devices, waiting for free ones; yields the environment that makes a stage's process see them alone.

    Without GPUs the processor is the one device, whatever the count. `on_wait` is called once for each thing that is waited for.

    Raises:
        ValueError: there are fewer devices, or slots in Prefect's limit. SlotLost: see `tasks.slot`.
    """
    gpus = visible_gpus()
    if gpus and count > len(gpus):
        raise ValueError(f"the stage wants {count} devices and this process may use {len(gpus)}: CUDA_VISIBLE_DEVICES is {','.join(gpus)}")
    locks = store.root / "locks"
    paths = {device_lock(locks, f"gpu-{gpu}"): gpu for gpu in gpus} or {device_lock(locks, "cpu"): ""}
    limit, slots = limit_name(), count if gpus else 1
    with ExitStack() as stack:
        # The devices first: whoever waits for one of this machine must not keep a slot from another machine.
        taken = stack.enter_context(_devices(list(paths), slots, on_wait))
        if limit:
            stack.enter_context(global_slot(limit, slots, len(paths), on_wait))
        yield {"CUDA_VISIBLE_DEVICES": ",".join(paths[path] for path in taken)} if gpus else {}


@contextmanager
def _devices(paths: list[Path], count: int, on_wait: Callable[[str], None]) -> Iterator[list[Path]]:
    said: list[str] = []

    def say() -> None:
        if not said:
            said.append(_users(paths))
            on_wait(said[0])

    queue = paths[0].with_name(f"queue-{hashlib.sha256(' '.join(sorted(map(str, paths))).encode()).hexdigest()[:8]}.lock")
    with ExitStack() as stack:
        with file_lock(queue, say):
            taken = stack.enter_context(some_locks(paths, count, say))
        for path in taken:
            path.write_text(_name_of_caller(), encoding="utf-8")
        yield taken


def _name_of_caller() -> str:
    """The run and the stage of the caller, for those that wait for its devices."""
    from prefect.context import TaskRunContext

    run, task = provenance.flow_run(), TaskRunContext.get()
    names = [run.name if run else f"process {os.getpid()}", *([task.task_run.name] if task else [])]
    return f"{' '.join(names)} since {time.strftime('%H:%M', time.gmtime())} UTC"


def _users(paths: list[Path]) -> str:
    """Who has the devices, in words."""
    used = [f"{path.stem.split('-', 2)[2]}: {path.read_text(encoding='utf-8')}" for path in paths if not is_free(path)]
    return f"a free device ({'; '.join(used) or 'others are before it'})"
