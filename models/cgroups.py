"""What the container or service that this process runs in may still use: control groups of Linux, versions 1 and 2, in bytes."""

from collections.abc import Iterator
from pathlib import Path

# limit, usage, and the prefix of the lines of memory.stat that count the whole subtree
_VERSIONS = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
    2: ("memory.max", "memory.current", ""),
}


def memory_headroom(mount: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes until the tightest limit on this process or any group above it; None where there is none.

    Cached file contents count as usage there, and are given back when memory is asked for: they are free here.
    """
    rooms = [room for version, folder in _groups(mount, membership) if (room := _room(folder, version)) is not None]
    return min(rooms, default=None)


def _groups(mount: Path, membership: Path) -> Iterator[tuple[int, Path]]:
    """Every group this process belongs to and those above; only a container's own root where the path belongs to the host."""
    lines = membership.read_text(encoding="utf-8").splitlines() if membership.is_file() else []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            version, root = 2, mount
        elif "memory" in controllers.split(","):
            version, root = 1, mount / "memory"
        else:
            continue
        own = root / path.lstrip("/")
        for folder in (own, *own.parents):
            if folder.is_dir():
                yield version, folder
            if folder == root:
                break


def _room(folder: Path, version: int) -> int | None:
    limit_name, usage_name, prefix = _VERSIONS[version]
    limit, usage, stat = folder / limit_name, folder / usage_name, folder / "memory.stat"
    if not (limit.is_file() and usage.is_file()) or (allowed := limit.read_text().strip()) == "max":
        return None
    counts = dict(line.split() for line in stat.read_text().splitlines()) if stat.is_file() else {}
    cached = sum(int(counts.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
    return max(0, int(allowed) - int(usage.read_text()) + cached)
