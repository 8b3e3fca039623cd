"""Run records: written as things happen, truthful after a kill, and in the way of nobody but the garbage collector."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from tasks import registry
from tasks.registry import InUse, alone, find, in_use, record_stage, recording, rehearsal, runs
from tasks.store import Artifact

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path))


def artifact(digest: str = "ab" * 32) -> Artifact:
    return Artifact(kind="policy", digest=digest, size_bytes=3, n_files=1)


def in_another_process(code: str) -> subprocess.Popen[str]:
    """A process that runs `code` and lives until its standard input ends, once it has printed a line."""
    script = textwrap.dedent(code)
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline()
    return process


LIVE_RUN = """
    from tasks.registry import recording, record_stage
    with recording("tiny", {"seed": 1}) as run:
        record_stage(run, "sft", "k1", None, "running", 0)
        print(run.name, flush=True)
        input()
"""


def test_a_run_is_on_disk_as_it_happens():
    with recording("tiny", {"seed": 1}, seed=1) as run:
        record_stage(registry.current_run(), "sft", "k1", artifact(), "computed", 1.23456)
        seen = find("tiny-1")
        assert (seen.status, seen.stages["sft"].outcome, seen.stages["sft"].seconds) == ("running", "computed", 1.235)
        assert seen.artifacts() == {"sft": artifact()}
    ended = find("tiny")
    assert (run.name, ended.status, ended.config, ended.seed) == ("tiny-1", "finished", {"seed": 1}, 1)
    assert ended.ended is not None and ended.ended >= ended.started


@pytest.mark.parametrize(("error", "status"), [(ValueError("beta"), "failed"), (KeyboardInterrupt(), "stopped")])
def test_how_a_run_ended_is_recorded(error, status):
    with pytest.raises(type(error)), recording("tiny", {}):
        raise error
    assert (find("tiny").status, type(error).__name__ in str(find("tiny").error)) == (status, True)


def test_names_count_up_and_runs_are_found_by_name_recipe_or_latest():
    for recipe in ("tiny", "tiny", "gsm8k"):
        with recording(recipe, {}):
            pass
    assert [run.name for run in runs()] == ["tiny-1", "tiny-2", "gsm8k-1"]
    assert [find(name).name for name in ("tiny", "tiny-1", "latest")] == ["tiny-2", "tiny-1", "gsm8k-1"]
    assert [run.name for run in runs("tiny")] == ["tiny-1", "tiny-2"]
    with pytest.raises(ValueError, match=r"no run 'tony'. The last runs: tiny-1, tiny-2, gsm8k-1"):
        find("tony")


def test_a_name_is_not_given_twice_even_if_its_run_ended_a_moment_ago():
    with recording("tiny", {}):
        pass
    assert registry._claim("tiny-1") is None
    claimed = registry._claim("tiny-2")
    assert claimed is not None
    os.close(claimed)


def test_nothing_run_yet_says_how_to_begin():
    with pytest.raises(ValueError, match="posttrain run quickstart"):
        find("latest")


def test_a_recipe_file_with_a_strange_name_still_gives_a_usable_run_name():
    with recording("My recipe/ü", {}) as run:
        assert run.name == "my-recipe-1"


def test_a_recording_inside_a_recording_is_the_outer_one():
    with recording("tiny", {"a": 1}) as outer, recording("rlhf", {"a": 2}) as inner:
        assert inner is outer
        assert find("tiny").status == "running"
    assert [run.name for run in runs()] == ["tiny-1"]


def test_a_rehearsal_leaves_nothing():
    with rehearsal("tiny"), recording("rlhf", {}) as run:
        record_stage(run, "sft", "k", artifact(), "hit", 0)
    assert runs() == [] and registry.current_run() is None


def test_threads_do_not_lose_each_others_stages():
    with recording("tiny", {}) as run:
        threads = [threading.Thread(target=record_stage, args=(run, f"s{i}", "k", None, "computed", 0.0)) for i in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(find("tiny").stages) == 20


def test_concurrent_runs_get_names_of_their_own_and_a_killed_one_is_known_as_killed():
    others = [in_another_process(LIVE_RUN) for _ in range(2)]
    assert sorted(run.name for run in runs()) == ["tiny-1", "tiny-2"]
    assert {run.status for run in runs()} == {"running"}
    os.kill(others[0].pid, signal.SIGKILL)
    others[0].communicate()
    others[1].communicate("\n")
    assert sorted(run.status for run in runs()) == ["finished", "killed"]
    killed = next(run for run in runs() if run.status == "killed")
    assert killed.stages["sft"].key == "k1"


def test_the_store_belongs_to_one_collector_or_to_many_users():
    with in_use(), in_use(), pytest.raises(InUse, match="a chat"), alone():
        pass
    with alone():
        pass
    other = in_another_process(LIVE_RUN)
    with pytest.raises(InUse, match="tiny-1 is using the store"), alone():
        pass
    os.kill(other.pid, signal.SIGKILL)
    other.communicate()
    with alone():
        pass


def test_a_record_of_another_version_is_passed_over():
    registry.folder().mkdir()
    (registry.folder() / "old-1.json").write_text('{"name": "old-1"}')
    (registry.folder() / "torn-1.json").write_text("{")
    assert runs() == []
