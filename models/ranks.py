"""A stage on several ranks: its process becomes the agent of torchrun, which starts one process a rank and ends all when one ends badly.

    rank-00001.json    beside the spec: how that rank failed, {"type", "message", "traceback", "exit", "time", "follows"}

The ranks of one machine find each other on the loopback interface, at a port that the system picks. Over several machines:

    POSTTRAIN_NODES         machines that share the ranks evenly, default 1
    POSTTRAIN_RENDEZVOUS    host:port of the first machine, reachable from the others

and every other machine runs `python -m models.ranks join HOME/store`, which waits for such stages and takes its part in each.

    POSTTRAIN_RANKS    ranks for an attempt at a stage of several, instead of parallel.ranks: to go on where a device is missing. The key
                       stays, as it does after memory ran out; numbers are equal up to rounding.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from models import worker
from models.marked import MARK
from models.run import EXIT_STOPPED, Run, Stopped, write_atomic

COLLECTIVE_TIMEOUT = timedelta(hours=6)  # longer than the first rank may write a model; a hang is seen by the silence of the log before
JOIN_FILE = "join.json"
_PR_SET_PDEATHSIG = 1
_OF_THE_NETWORK = re.compile(r"gloo|nccl|connection (closed|reset|refused)|socket", re.IGNORECASE)


def ranks_of(config: Mapping[str, Any]) -> int:
    """Ranks for an attempt at a stage with this configuration.

    Raises:
        ValueError: POSTTRAIN_RANKS is not a number.
    """
    wanted = int(config.get("parallel", {}).get("ranks", 1))
    return _number("POSTTRAIN_RANKS", wanted) if wanted > 1 else 1


def _number(name: str, default: int) -> int:
    text = os.environ.get(name) or str(default)
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"{name} is {text!r}: give a number, 1 or more")
    return int(text)


def ranks_here(config: Mapping[str, Any]) -> int:
    """Those of them that run on this machine.

    Raises:
        ValueError: the machines cannot share the ranks evenly.
    """
    ranks, nodes = ranks_of(config), _number("POSTTRAIN_NODES", 1)
    if ranks == 1:
        return 1
    if ranks % nodes:
        raise ValueError(f"{ranks} ranks cannot be shared evenly by POSTTRAIN_NODES {nodes} machines: change one of the two")
    return ranks // nodes


# The agent

_asked_to_stop = False


def lead(spec_path: Path, spec: Mapping[str, Any]) -> int:
    """Run the ranks of a spec to their end; the exit code of the stage. What failed is in error.json.

    Where a rank was killed by SIGKILL this process dies of it too, so that whoever watches it can tell that memory ran out.
    """
    here, nodes = ranks_here(spec["config"]), _number("POSTTRAIN_NODES", 1)
    endpoint = os.environ.get("POSTTRAIN_RENDEZVOUS", "") if nodes > 1 else "localhost:0"
    if not endpoint:
        raise ValueError(f"POSTTRAIN_NODES is {nodes}: set POSTTRAIN_RENDEZVOUS to host:port of this machine, as the others see it")
    launch = {"spec": str(spec_path), "ranks": here, "nodes": nodes, "endpoint": endpoint, "id": spec["environment"][MARK]}
    if nodes > 1:
        write_atomic(_join_file(Path(spec["checkpoints"]).parents[1]), json.dumps(launch))
    exit_code = verdict(spec_path, start_ranks(launch))
    if exit_code == -signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    return exit_code


def start_ranks(launch: Mapping[str, Any]) -> dict[int, int]:
    """Start this machine's ranks under torchrun's agent and wait for them; the exit codes of those that failed, the first one first."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    spec_path = Path(launch["spec"])
    here = launch["endpoint"].startswith("localhost:")
    config = LaunchConfig(
        min_nodes=launch["nodes"],
        max_nodes=launch["nodes"],
        nproc_per_node=launch["ranks"],
        logs_specs=DefaultLogsSpecs(log_dir=str(spec_path.with_name("torchrun"))),
        run_id=launch["id"],
        rdzv_backend="c10d",
        rdzv_endpoint=launch["endpoint"],
        max_restarts=0,  # an attempt is repeated by the stage, from its checkpoint
        local_addr="localhost" if here else None,
        signals_to_handle="SIGUSR2",  # SIGTERM is passed on, below; the agent would cut a save short at the second one
    )
    if here:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)  # a rank begins in another folder than that of the code
    signal.signal(signal.SIGTERM, _pass_on)
    try:
        elastic_launch(config, sys.executable)("-m", "models.ranks", "rank", str(spec_path), str(os.getpid()))
    except ChildFailedError as error:
        failures = sorted(error.failures.items(), key=lambda item: item[1].timestamp)
        return {rank: failure.exitcode for rank, failure in failures}
    return {}


def _pass_on(signum: int, frame: object) -> None:
    """SIGTERM goes to the ranks, which agree on a last update and save; before there are any there is nothing to save."""
    global _asked_to_stop
    _asked_to_stop = True
    children = _children()
    if not children:
        raise Stopped
    for pid in children:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


def _children() -> list[int]:
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "stat").read_text()
            except OSError:
                continue  # it ended
            state, parent = status.rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                found.append(int(folder.name))
    return found


def verdict(spec_path: Path, failures: Mapping[int, int]) -> int:
    """The exit code of the stage, and error.json with the failure from which the others follow."""
    if not failures:
        return 0
    paths = spec_path.parent.glob("rank-*.json")
    told = sorted((json.loads(path.read_text(encoding="utf-8")) for path in paths), key=lambda error: (error["follows"], error["time"]))
    stopped = {EXIT_STOPPED, -signal.SIGTERM} & set(failures.values())
    killed = [(rank, code) for rank, code in failures.items() if code < 0 and code != -signal.SIGTERM]
    if told and not told[0]["follows"]:
        return _fail(spec_path, told[0])
    if stopped and (_asked_to_stop or not killed):
        return EXIT_STOPPED
    if killed:
        rank, code = killed[0]
        error = {"message": f"was killed by {signal.Signals(-code).name}", "type": "Killed"}
        return _fail(spec_path, {**error, "rank": rank, "exit": code if code == -signal.SIGKILL else worker.EXIT_ERROR})
    rank, code = next(iter(failures.items()))
    return _fail(spec_path, told[0] if told else {"rank": rank, "message": f"ended with exit code {code}", "type": "Ended", "exit": code})


def _fail(spec_path: Path, error: Mapping[str, Any]) -> int:
    message = f"rank {error['rank']}: {error['message']}"
    write_atomic(spec_path.with_name("error.json"), json.dumps({"traceback": "", **error, "message": message}))
    return int(error["exit"])


# Other machines


def _join_file(store: Path) -> Path:
    (store / "ranks").mkdir(parents=True, exist_ok=True)
    return store / "ranks" / JOIN_FILE


def join(store: Path) -> None:
    """On another machine: take part in every stage of several machines that begins in this store, until SIGTERM."""
    path, seen = _join_file(store), ""
    signal.signal(signal.SIGTERM, _pass_on)
    while not _asked_to_stop:
        launch = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"id": ""}
        if launch["id"] not in ("", seen) and Path(launch["spec"]).exists():
            seen = launch["id"]
            spec = json.loads(Path(launch["spec"]).read_text(encoding="utf-8"))
            os.environ.update({name: value for name, value in spec["environment"].items() if name.startswith("POSTTRAIN_")})
            print(f"joins {spec['entry']} with {launch['ranks']} ranks", flush=True)
            try:
                print(f"ended with {start_ranks(launch) or 'success'}", flush=True)
            except Exception:  # the first machine may have gone: it begins the next attempt
                traceback.print_exc()
        time.sleep(0.5)


# A rank


class FollowingRun(Run):
    """The run of every rank but the first: it saves and stops with the others, and leaves reports to the first."""

    rank = 0

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """The first rank reports."""

    def rewind(self, step: int) -> None:
        self.resumed_step = step

    def sync(self) -> None:
        """The first rank has the journal."""

    def progress(self, done: int, total: int, **rates: float) -> None:
        """The first rank tells."""

    def log(self, text: str) -> None:
        """All ranks would say the same."""

    def failpoint(self, name: str) -> None:
        """POSTTRAIN_FAILPOINT "rank1 step:2" is meant for one of them."""
        super().failpoint(f"rank{self.rank} {name}")


def run_rank(spec_path: Path, parent: int) -> int:
    """One rank of a stage; the exit code."""
    import torch.distributed as dist

    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent and os.getppid() != parent:  # 0: torchrun itself is the agent
        return EXIT_STOPPED
    spec = json.loads(spec_path.read_text(encoding="utf-8"))
    sys.path.insert(0, spec["root"])
    rank = int(os.environ["RANK"])
    try:
        _own_device()
        dist.init_process_group(timeout=COLLECTIVE_TIMEOUT)
        run = _run_of(rank, spec_path, spec)
        signal.signal(signal.SIGTERM, run.on_sigterm)
        meta = worker.execute(spec, run)
        run.close()
        if rank == 0:
            write_atomic(spec_path.with_name("result.json"), json.dumps({"meta": meta, "resumed_step": run.resumed_step}))
        dist.destroy_process_group()
        return 0
    except Stopped:
        return EXIT_STOPPED
    except BaseException as error:
        exit_code = worker.classify(error)
        traceback.print_exc()
        told = worker.describe(error, exit_code) | {"rank": rank, "time": time.time(), "follows": follows(error)}
        write_atomic(spec_path.with_name(f"rank-{rank:05d}.json"), json.dumps(told))
        return exit_code


def _own_device() -> None:
    """The GPU of this rank's number on its machine; a processor's threads are shared."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    else:
        os.environ.setdefault("POSTTRAIN_THREADS", str(max(1, worker.thread_count() // int(os.environ["LOCAL_WORLD_SIZE"]))))


def _run_of(rank: int, spec_path: Path, spec: Mapping[str, Any]) -> Run:
    """The first rank writes the artifact; what another writes is thrown away."""
    out = Path(spec["out"]) if rank == 0 else spec_path.with_name(f"rank-{rank:05d}-out")
    out.mkdir(exist_ok=True)
    run = (FollowingRun if rank else Run)(out, Path(spec["checkpoints"]), spec["stage_key"], spec["micro_batch_scale"])
    if isinstance(run, FollowingRun):
        run.rank = rank
    return run


def follows(error: BaseException) -> bool:
    """True for errors of the network between ranks: another rank has ended first."""
    return type(error).__name__ in ("DistNetworkError", "DistBackendError") or (
        isinstance(error, RuntimeError) and bool(_OF_THE_NETWORK.search(str(error)))
    )


if __name__ == "__main__":
    if sys.argv[1] == "join":
        join(Path(sys.argv[2]))
        sys.exit(EXIT_STOPPED)
    code = 1
    try:
        code = run_rank(Path(sys.argv[2]), int(sys.argv[3]))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)
