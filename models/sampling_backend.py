"""Which sampler answers: this project's own, or vllm where it is installed and a GPU is there."""

import os
from importlib import metadata
from pathlib import Path
from typing import Literal

Backend = Literal["own", "vllm", "auto"]
ENABLE = "pip install vllm, on a machine with an NVIDIA GPU"


def chosen_backend(backend: Backend) -> tuple[Literal["own", "vllm"], str]:
    """The sampler that a setting means on this machine, and why: part of the cache key, since their samples differ.

    Raises:
        ValueError: vllm is asked for, and this machine cannot run it.
    """
    if backend == "own":
        return "own", "it is asked for"
    lacking = _lacking()
    if not lacking:
        return "vllm", f"vllm {metadata.version('vllm')}"
    if backend == "vllm":
        raise ValueError(f"sampling.backend is vllm, and {lacking}: set it to auto or own, or {ENABLE}")
    return "own", lacking


def _lacking() -> str:
    try:
        metadata.version("vllm")
    except metadata.PackageNotFoundError:
        return "vllm is not installed"
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return "" if any(name.strip() not in ("", "-1") for name in chosen.split(",")) else "CUDA_VISIBLE_DEVICES hides every GPU"
    nodes = [path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()]
    return "" if nodes else "no GPU is there"
