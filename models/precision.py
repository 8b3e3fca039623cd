"""Which number format this machine computes in. No torch here: the cache key asks too."""

from functools import cache
from pathlib import Path

# Without one of these the processor emulates bfloat16, several times slower than float32.
_BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


def resolve_dtype(wanted: str) -> str:
    """'auto' as 'bfloat16' or 'float32'; a named type as itself."""
    return ("bfloat16" if _has_bf16() else "float32") if wanted == "auto" else wanted


@cache
def _has_bf16() -> bool:
    if Path("/dev/nvidia0").exists():
        return True
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return bool(_BF16_FLAGS & set(flags.split()))
