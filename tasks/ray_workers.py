"""Ray workers beside a stage: Prefect tasks, submitted through prefect-ray, that replay the stage and compute chunks of it.

They are asked for by the environment (tasks/ray_cluster.py) and are in no stage's key: the result is the same for any number of workers.
Each is a task run of its own in Prefect, without a cache record. The stage's own process needs none of them: where Ray has no room or
loses a worker, it goes on, alone if need be.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from prefect import Flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL, temporary_settings

from models.sharing import computed_by
from models.worker import thread_count
from tasks.device import device_lock, visible_gpus
from tasks.home import CHECKOUT
from tasks.locks import try_lock
from tasks.process import ZYGOTE_ENVIRONMENT
from tasks.ray_cluster import cluster_address, joined, room, workers_asked

LOOK_S = 0.1
END_WAIT_S = 20.0
LOST = 3  # times that Ray starts a worker again whose host or process it has lost
# Numbers of threads decide the last digits: a worker gets what the stage's own process has, not what Ray sets.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")


@contextmanager
def ray_workers(
    function: str, spec: dict[str, Any], locks: Path, folder: Path, label: str, log: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """Ray workers that run ``function`` beside a stage while the block runs; yields the spec for the stage's own process.

    Args:
        function: "package.module:function"; empty: the stage can use no workers.
        spec: of the stage's process (models/worker.py).
        locks: folder of the locks of this machine's devices.
        folder: made for what is shared; on storage that all hosts see.
        label: of the stage.
        log: one line for the run's log.

    Raises:
        ValueError: a setting is wrong, or Ray is not installed.
    """
    address = cluster_address() if function else ""
    if not address:
        yield spec
        return
    with ExitStack() as held:
        runner, places, missing = _found(address, locks, held)
        if not places:
            log(f"{label} runs in its own process alone: {missing}")
            yield spec
            return
        folder.mkdir()
        shared = {**spec, "sharing": str(folder), "followers": len(places)}
        futures = [_submitted(runner, {**shared, "entry": function}, place, f"{label}, Ray worker {n}") for n, place in enumerate(places)]
        log(f"{label} is shared with {len(futures)} Ray {'worker' if len(futures) == 1 else 'workers'} ({address})")
        try:
            yield shared
        finally:
            (folder / "ended").touch()
            _end(futures, folder)
            _tell_shares(folder, label, log)


# Where workers run


def _found(address: str, locks: Path, held: ExitStack) -> tuple[Any, list[dict[str, Any]], str]:
    """The cluster's task runner and the places of the workers, or none and what is missing."""
    try:
        runner = joined(address)
    except ConnectionError as error:
        return None, [], str(error)
    return runner, _places(address, bool(visible_gpus()), locks, held), _missing(address)


def _places(address: str, on_gpu: bool, locks: Path, held: ExitStack) -> list[dict[str, Any]]:
    """What each worker takes of its host; the stage's own process has its share already."""
    asked = workers_asked()
    if on_gpu and address == "local":
        spare = [gpu for gpu in visible_gpus() if _taken(device_lock(locks, f"gpu-{gpu}"), held)]
        return [{"cpus": 1, "gpus": 0, "device": gpu} for gpu in spare[: asked or len(spare)]]
    place = {"cpus": 1 if on_gpu else thread_count(), "gpus": int(on_gpu), "device": ""}
    most = room(place["cpus"], place["gpus"]) - (address == "local" and not asked)
    return [place] * min(asked or most, most)


def _taken(path: Path, held: ExitStack) -> bool:
    """Take the lock of a device that no stage uses."""
    descriptor = try_lock(path)
    if descriptor is not None:
        held.callback(os.close, descriptor)
    return descriptor is not None


def _missing(address: str) -> str:
    if not visible_gpus():
        wanted = f"{thread_count()} processors for a Ray worker: add one by `ray start --address=HOST:6379`, or lower POSTTRAIN_THREADS"
        return f"no host of the Ray cluster ({address}) has {wanted}"
    if address == "local":
        return "no other GPU of this machine is free for a Ray worker"
    return f"no host of the Ray cluster ({address}) has a GPU: add one by `ray start --address=HOST:6379 --num-gpus=1`"


# One worker


def _submitted(runner: Any, spec: dict[str, Any], place: Mapping[str, Any], name: str) -> Any:
    """The worker as a task run. It waits where the cluster is busy; Ray starts it again, elsewhere if need be, when it is lost."""
    from prefect_ray.context import remote_options

    own = {key: value for key, value in os.environ.items() if key.startswith("POSTTRAIN_") and key != "POSTTRAIN_FAILPOINT"}
    device = {"CUDA_VISIBLE_DEVICES": place["device"]} if place["device"] else {}
    spec["environment"] = {**own, **device, "POSTTRAIN_THREADS": str(thread_count())}
    spec["threads"] = {key: os.environ.get(key) for key in THREADS}
    with get_client(sync_client=True) as client:
        url = str(client.api_url)  # a worker would start a server of its own where the flow has a temporary one
    options = {"num_cpus": place["cpus"], "num_gpus": place["gpus"], "max_retries": LOST, "scheduling_strategy": "SPREAD"}
    with remote_options(**options), temporary_settings({PREFECT_API_URL: url}), _slim_context():
        return runner.submit(follow.with_options(task_run_name=name), {"spec": spec, "name": name})


@contextmanager
def _slim_context() -> Iterator[None]:
    """Of Prefect's context, which is sent to the worker, only the flow run: not the flow, its parameters, nor the stage's task."""
    whole = FlowRunContext.get()
    with ExitStack() as stack:
        stack.callback(TaskRunContext.__var__.reset, TaskRunContext.__var__.set(None))  # type: ignore[arg-type]
        if whole is not None:
            slim = whole.model_copy(update={"parameters": {}, "flow": Flow(_nothing, name=whole.flow.name if whole.flow else "flow")})
            stack.callback(FlowRunContext.__var__.reset, FlowRunContext.__var__.set(slim))
        yield


def _nothing() -> None:
    """The body of the flow that a worker is told of."""


@task(name="ray_worker", cache_policy=NO_CACHE, persist_result=False)
def follow(spec: dict[str, Any], name: str) -> None:
    """Run a follower of a stage on this host until the stage is over.

    Raises:
        ValueError: this host does not see the stage's folder.
        ChildProcessError: the follower failed, as its log says.
    """
    sharing = Path(spec["sharing"])
    if not sharing.is_dir():
        raise ValueError(f"{platform.node()} does not see {sharing}: the output folder must be on storage that all hosts share")
    (sharing / f"{name.rpartition(' ')[2]}.started").touch()
    with tempfile.TemporaryDirectory(prefix="posttrain-worker-") as scratch:
        log = Path(scratch) / "log"
        log.touch()
        status = _followed(spec, Path(scratch), log, sharing / "ended")
        if status:
            tail = log.read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
            get_run_logger().warning("%s on %s stands aside, the stage goes on without it:\n%s", name, platform.node(), "\n".join(tail))
            raise ChildProcessError(f"{name} on {platform.node()} ended with status {status}: {tail[-1] if tail else 'no word'}")


def _followed(spec: dict[str, Any], scratch: Path, log: Path, ended: Path) -> int:
    """The exit status of a follower; 0 also where it was ended with the stage."""
    (scratch / "out").mkdir()
    path = scratch / "spec.json"
    path.write_text(json.dumps({**spec, "out": str(scratch / "out"), "log": str(log)}), encoding="utf-8")
    threads = {key: value for key, value in spec["threads"].items() if value is not None}
    environment = {key: value for key, value in os.environ.items() if key not in THREADS} | threads | ZYGOTE_ENVIRONMENT
    command = [sys.executable, "-m", "models.followers", str(path), str(os.getpid())]
    process = subprocess.Popen(command, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, stderr=log.open("ab"))
    try:
        while process.poll() is None and not ended.exists():
            time.sleep(LOOK_S)
        return 0 if ended.exists() else process.wait()
    finally:
        process.kill()
        process.wait()


# The end


def _end(futures: Sequence[Any], folder: Path) -> None:
    """Wait for workers that have started, which see the end by themselves; call the others off."""
    import ray

    end = time.monotonic() + END_WAIT_S
    for number, future in enumerate(futures):
        if (folder / f"{number}.started").exists():
            future.wait(timeout=max(0.1, end - time.monotonic()))
        ray.cancel(future.wrapped_future, force=True)


def _tell_shares(folder: Path, label: str, log: Callable[[str], None]) -> None:
    shares = computed_by(folder)
    if shares:
        log(f"{label}: chunks computed by {', '.join(f'{who} {count}' for who, count in sorted(shares.items()))}")
