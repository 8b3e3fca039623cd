"""The process of a stage: reads a JSON spec, runs the stage's function, leaves a JSON result.

    spec.json     entry "models.training.sft:train", config, inputs, seed, folders, environment, digests of the sources behind the key;
                  "sharing": folder of the processes that compute chunks of the stage too (models/sharing.py), and "followers", how many
    result.json   {"meta": what the function returned, "resumed_step": int or null}
    error.json    {"type", "message", "traceback", "exit"}

Exit codes: 0 done; 143 stopped by SIGTERM after saving; 78 the user can mend it (configuration, data, disk full): no use in trying again;
77 out of memory; 70 a mistake in the code: no use in trying again either; 1 anything else, worth another attempt.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import importlib
import inspect
import json
import os
import random
import re
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data.bugs import BUGS
from models.run import EXIT_STOPPED, Run, Stopped, write_atomic
from models.sharing import Sharing
from models.source import meaning_digest
from models.spending import accounted

EXIT_ERROR = 1
EXIT_BUG = 70
EXIT_OUT_OF_MEMORY = 77
EXIT_USER = 78

PREDECESSOR_WAIT_S = 120.0
_PR_SET_PDEATHSIG = 1

_OUT_OF_MEMORY = re.compile(r"out of memory|can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED", re.IGNORECASE)
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_USER_ERRORS = (ValueError, FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError, ImportError)


def main(spec_path: Path, parent: int) -> int:
    """Run the stage of a spec and return the exit code. `parent` is the process whose death must be ours."""
    spec = json.loads(spec_path.read_text(encoding="utf-8"))
    enter_process(spec, parent)
    run = Run(Path(spec["out"]), Path(spec["checkpoints"]), spec["stage_key"], spec["micro_batch_scale"])
    signal.signal(signal.SIGTERM, run.on_sigterm)
    from models.ranks import lead, ranks_of  # which stands on this module

    try:
        with sole_owner(run.checkpoints), accounted(run.checkpoints):
            if ranks_of(spec["config"]) > 1:
                return lead(spec_path, spec)
            if spec.get("sharing"):
                run.sharing = Sharing(Path(spec["sharing"]), leads=True, tick=run.stop_if_asked, followers=spec["followers"])
            meta = execute(spec, run)
            run.close()
            write_atomic(spec_path.with_name("result.json"), json.dumps({"meta": meta, "resumed_step": run.resumed_step}))
        return 0
    except Stopped:
        return EXIT_STOPPED
    except BaseException as error:
        exit_code = classify(error)
        traceback.print_exc()
        write_atomic(spec_path.with_name("error.json"), json.dumps(describe(error, exit_code)))
        return exit_code


# The process


def enter_process(spec: Mapping[str, Any], parent: int) -> None:
    """Become the leader of an own session that dies with its parent, with the environment, folder and log of the spec."""
    if os.getpid() != os.getsid(0):
        os.setsid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it died before the line above
        os._exit(EXIT_STOPPED)
    _redirect(Path(spec["log"]))
    os.chdir(spec["folder"])
    for name in [name for name in os.environ if name.startswith("POSTTRAIN_")]:
        del os.environ[name]
    os.environ.update(spec["environment"])
    sys.path.insert(0, spec["root"])


def _redirect(log: Path) -> None:
    """Standard output and error to the end of the log file, input from nowhere. A file never blocks, as a full pipe would."""
    for target, path, flags in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)):
        descriptor = os.open(path, flags, 0o644)
        os.dup2(descriptor, target)
        os.close(descriptor)
    os.dup2(1, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]


@contextmanager
def sole_owner(checkpoints: Path) -> Iterator[None]:
    """Hold the checkpoint folder: an earlier process of the same stage may still be saving after its flow was killed."""
    with (checkpoints / "owner.lock").open("w") as file:
        end = time.monotonic() + PREDECESSOR_WAIT_S
        while not _locked(file.fileno()):
            if time.monotonic() > end:
                raise OSError(errno.EBUSY, "an earlier process of this stage still holds its checkpoints", str(checkpoints))
            time.sleep(0.05)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# The stage's function


def execute(spec: Mapping[str, Any], run: Run) -> dict[str, Any]:
    """Call the stage's function and return its meta.

    Raises:
        ValueError: the entry or a source is not what the spec says.
    """
    entry = load_entry(spec["entry"], spec["runnable"])
    check_sources(Path(spec["root"]), spec["sources"])
    config = config_class(entry).model_validate(spec["config"])
    prepare_numerics(spec["seed"])
    return call_entry(entry, config, {name: decode_input(value) for name, value in spec["inputs"].items()}, spec["seed"], run)


def call_entry(entry: Callable[..., Any], config: Any, inputs: Mapping[str, Any], seed: int | None, run: Run) -> dict[str, Any]:
    """Call a stage's function with what its signature asks for; what it returns must be JSON."""
    arguments = {**inputs, "run": run}
    if "seed" in inspect.signature(entry).parameters:
        arguments["seed"] = seed
    meta = entry(config, **arguments) or {}
    json.dumps(meta, allow_nan=False)
    return meta


def load_entry(name: str, runnable: list[str]) -> Callable[..., Any]:
    """The function "package.module:function"; only functions of the packages that may be run."""
    module, _, function = name.partition(":")
    if module.split(".")[0] not in runnable or not function:
        raise ValueError(
            f"{name!r} cannot be run as a stage: it must be package.module:function with a package among {', '.join(runnable)}"
        )
    return getattr(importlib.import_module(module), function)


def config_class(entry: Callable[..., Any]) -> Any:
    """The class that annotates the parameter `config` of a stage's function."""
    annotation = entry.__annotations__.get("config")
    if isinstance(annotation, str):  # under `from __future__ import annotations`; a name of the function's module, maybe dotted
        found: Any = sys.modules[entry.__module__]
        for part in annotation.split("."):
            found = getattr(found, part)
        return found
    if annotation is None:
        raise TypeError(f"{entry.__module__}.{entry.__qualname__} must annotate its parameter `config` with the class of its configuration")
    return annotation


def decode_input(value: Mapping[str, Any]) -> Any:
    """The inverse of `encode_input`: artifacts arrive as folders."""
    ((form, content),) = value.items()
    if form == "path":
        return Path(content)
    if form == "list":
        return [decode_input(item) for item in content]
    if form == "map":
        return {key: decode_input(item) for key, item in content.items()}
    return content


def encode_input(value: Any) -> dict[str, Any]:
    """A path, a plain value, or a list or dict of them, as JSON that says which it is."""
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, list | tuple):
        return {"list": [encode_input(item) for item in value]}
    if isinstance(value, Mapping):
        return {"map": {str(key): encode_input(item) for key, item in value.items()}}
    return {"value": value}


def check_sources(root: Path, sources: Mapping[str, list[str]]) -> None:
    """Compare the sources with those that the key was made of: whoever edits code while a run waits must not get a wrong cache entry."""
    for name, (raw, meaning) in sources.items():
        content = (root / name).read_bytes()
        if hashlib.sha256(content).hexdigest()[:16] == raw:
            continue
        if not name.endswith(".py") or meaning_digest(content) != meaning:
            raise ValueError(f"{name} was edited after this run had looked at it: start the run again, finished stages are kept")


def prepare_numerics(seed: int | None) -> None:
    """Same inputs, same numbers: seeds for code that draws without a generator, deterministic kernels, a fixed number of threads."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(None if seed is None else seed % 2**32)
    if "torch" not in sys.modules:
        return
    import torch

    torch.manual_seed(seed or 0)
    torch.set_num_threads(thread_count())
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    # The mode above would also write every new tensor full before its first use: a tenth of an update. Nothing here reads such memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def thread_count() -> int:
    """POSTTRAIN_THREADS, else the processors that this process may use."""
    text = os.environ.get("POSTTRAIN_THREADS") or str(len(os.sched_getaffinity(0)))
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"POSTTRAIN_THREADS is {text!r}: give a number of threads, 1 or more")
    return int(text)


# Errors


def classify(error: BaseException) -> int:
    """The exit code of an error: whether the user can mend it, memory ran out, the code is wrong, or another attempt may help."""
    is_torch_oom = type(error).__name__ in ("OutOfMemoryError", "AcceleratorError", "RuntimeError") and _OUT_OF_MEMORY.search(str(error))
    if isinstance(error, MemoryError) or is_torch_oom:
        return EXIT_OUT_OF_MEMORY
    if isinstance(error, _USER_ERRORS) or _DISK_FULL.search(str(error)):
        return EXIT_USER
    return EXIT_BUG if isinstance(error, BUGS) else EXIT_ERROR


def describe(error: BaseException, exit_code: int) -> dict[str, Any]:
    """An error as JSON."""
    text = "".join(traceback.format_exception(error))
    message = " ".join([str(error), *getattr(error, "__notes__", [])])
    return {"type": type(error).__name__, "message": message, "traceback": text, "exit": exit_code}


def run_and_exit(spec_path: Path, parent: int) -> None:
    """Run the stage and end this process at once, past whatever a forked or half-torn interpreter would still do."""
    exit_code = EXIT_ERROR
    try:
        exit_code = main(spec_path, parent)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(exit_code)


if __name__ == "__main__":
    run_and_exit(Path(sys.argv[1]), int(sys.argv[2]))
