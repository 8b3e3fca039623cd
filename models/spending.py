"""What a stage's process spends: seconds, generated tokens, peak memory. Kept beside the artifact, so that no digest depends on it.

    costs/<stage key>.json    {"seconds": 12.3, "generated_tokens": 4096, "peak_bytes": 812345678, "device_peak_bytes": 0}

All attempts at a key are added up; one that was killed by SIGKILL leaves no word of what it had spent.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.run import write_atomic

FILE = "cost.json"

_generated_tokens = 0


def count_generated(n_tokens: int) -> None:
    """Tokens that were sampled in this process, or for it."""
    global _generated_tokens
    _generated_tokens += n_tokens


def generated_tokens() -> int:
    """How many were sampled, here and wherever it was counted for this process."""
    return _generated_tokens


@contextmanager
def accounted(folder: Path, own_process: bool = True) -> Iterator[None]:
    """Add what the block spends to ``cost.json`` in the folder, however the block ends.

    own_process: the process does nothing else, so that its peak of memory is the block's.
    """
    began, before = time.monotonic(), _generated_tokens
    try:
        yield
    finally:
        path = folder / FILE
        spent = read_cost(path) or {"seconds": 0.0, "generated_tokens": 0, "peak_bytes": 0, "device_peak_bytes": 0}
        own = {
            "seconds": round(spent["seconds"] + time.monotonic() - began, 3),
            "generated_tokens": spent["generated_tokens"] + _generated_tokens - before,
            "peak_bytes": max(spent["peak_bytes"], peak_bytes() if own_process else 0),
            "device_peak_bytes": max(spent["device_peak_bytes"], device_peak_bytes() if own_process else 0),
        }
        write_atomic(path, json.dumps(own))


def read_cost(path: Path) -> dict[str, Any] | None:
    """What was noted; None where nothing was, or not by this version."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    names = ("seconds", "generated_tokens", "peak_bytes", "device_peak_bytes")
    return found if isinstance(found, dict) and all(isinstance(found.get(name), int | float) for name in names) else None


def peak_bytes() -> int:
    """Largest resident memory of this process, or of the largest it has started and waited for; Linux counts it in KiB."""
    return 1024 * max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def device_peak_bytes() -> int:
    """Largest memory that tensors took on the GPU of this process; 0 without one."""
    torch = sys.modules.get("torch")
    return int(torch.cuda.max_memory_allocated()) if torch is not None and torch.cuda.is_initialized() else 0
