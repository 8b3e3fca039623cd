"""Limits of control groups: which of them counts, and what cached files count as."""

from pathlib import Path

import pytest

from models.cgroups import memory_headroom

MIB = 2**20


def group(folder: Path, names: dict[str, object]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, value in names.items():
        (folder / name).write_text(f"{value}\n")


def headroom(tmp_path: Path, line: str) -> int | None:
    (tmp_path / "membership").write_text(line + "\n")
    return memory_headroom(tmp_path / "mount", tmp_path / "membership")


def v2(limit: object, used: int, active: int = 0, inactive: int = 0) -> dict[str, object]:
    return {"memory.max": limit, "memory.current": used, "memory.stat": f"anon 1\nactive_file {active}\ninactive_file {inactive}"}


def test_version_2_own_group(tmp_path):
    group(tmp_path / "mount/service", v2(8000 * MIB, 3000 * MIB, active=300 * MIB, inactive=700 * MIB))
    assert headroom(tmp_path, "0::/service") == 6000 * MIB  # 8000 - 3000 + 300 + 700


def test_the_tightest_of_the_groups_above_counts(tmp_path):
    group(tmp_path / "mount/slice/service", v2("max", 100 * MIB))
    group(tmp_path / "mount/slice", v2(1000 * MIB, 400 * MIB))
    group(tmp_path / "mount", v2(5000 * MIB, 500 * MIB))
    assert headroom(tmp_path, "0::/slice/service") == 600 * MIB


def test_a_container_sees_only_its_root(tmp_path):
    group(tmp_path / "mount", v2(2000 * MIB, 500 * MIB))
    assert headroom(tmp_path, "0::/docker/0123abcd") == 1500 * MIB


def test_version_1_counts_the_subtree(tmp_path):
    stat = f"active_file 1\ntotal_active_file {20 * MIB}\ntotal_inactive_file {30 * MIB}"
    group(
        tmp_path / "mount/memory/job",
        {"memory.limit_in_bytes": 900 * MIB, "memory.usage_in_bytes": 850 * MIB, "memory.stat": stat},
    )
    assert headroom(tmp_path, "4:cpu,memory:/job") == 100 * MIB
    assert headroom(tmp_path, "4:cpu,cpuacct:/job") is None


@pytest.mark.parametrize("line", ["0::/", "4:memory:/", "9:cpuset:/"])
def test_no_limit(tmp_path, line):
    group(tmp_path / "mount", {"memory.max": "max", "memory.current": 5})
    assert headroom(tmp_path, line) is None


def test_over_the_limit_is_nothing_left(tmp_path):
    group(tmp_path / "mount", v2(100, 200))
    assert headroom(tmp_path, "0::/") == 0
