"""The whole flow on the model made from scratch: every stage computed, the second run nothing, a killed run as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tasks import registry

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["sft.epochs=2", "ppo.iterations=2", "grpo.iterations=2", "ppo.checkpoint.every_updates=1"]
POLICIES = ["base", "sft", "rejection_sampling", "ppo", "grpo", "dpo"]


def command(*settings: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", "run", "tiny", *(word for s in [*SETTINGS, *settings] for word in ("--set", s))]


def environment(home: Path) -> dict[str, str]:
    """One process that trains at a time, in one thread: the sums come out the same in every run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    return {**kept, "POSTTRAIN_HOME": str(home), "POSTTRAIN_THREADS": "1"}


def run(home: Path, *settings: str) -> str:
    done = subprocess.run(command(*settings), cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder in which the flow has run once."""
    folder = tmp_path_factory.mktemp("finished")
    run(folder)
    return folder


def record_of(home: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> registry.RunRecord:
    monkeypatch.setenv("POSTTRAIN_HOME", str(home))
    return registry.find(name)


def outcomes(record: registry.RunRecord) -> dict[str, str]:
    return {label: stage.outcome for label, stage in record.stages.items()}


def test_every_stage_is_computed_and_every_policy_has_a_row(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = record_of(finished, "tiny-1", monkeypatch)
    assert set(outcomes(record).values()) == {"computed"}
    digest = record.stages["comparison"].artifact.digest  # type: ignore[union-attr]
    rows = json.loads((finished / "store" / "objects" / digest[:2] / digest / "comparison.json").read_text())["rows"]
    assert [row["policy"] for row in rows] == POLICIES
    for row in rows:
        assert row["accuracy"]["low"] <= row["accuracy"]["mean"] <= row["accuracy"]["high"]
        assert row["reward"] is not None and row["completion_tokens"] >= 1 and row["distinct"] >= 1
    assert rows[1]["kl_nats"] == 0 and rows[1]["win_rate"] is None  # sft is its own reference
    assert rows[0]["kl_nats"] > 0  # an untrained model is far from it


def test_the_second_run_computes_nothing_and_a_setting_only_what_it_reaches(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run(finished)
    assert set(outcomes(record_of(finished, "tiny-2", monkeypatch)).values()) == {"hit"}
    assert "mlflow" in printed and "posttrain ui" in printed
    run(finished, "dpo.beta=0.2")
    changed = {label for label, outcome in outcomes(record_of(finished, "tiny-3", monkeypatch)).items() if outcome != "hit"}
    assert changed == {"dpo", "evaluate[dpo]", "comparison"}


def test_a_run_killed_in_the_middle_of_ppo_ends_with_the_same_digests(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = subprocess.Popen(command(), cwd=ROOT, env=environment(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not list((tmp_path / "store" / "checkpoints").glob("ppo-*/step-*")):
        assert victim.poll() is None and time.monotonic() < deadline, "the run ended before PPO had saved"
        time.sleep(0.02)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    run(tmp_path)
    again = record_of(tmp_path, "tiny-2", monkeypatch)
    assert outcomes(again)["sft"] == "hit" and outcomes(again)["ppo"] in ("resumed", "computed")
    assert {label: stage.artifact for label, stage in again.stages.items()} == {
        label: stage.artifact for label, stage in record_of(finished, "tiny-1", monkeypatch).stages.items()
    }
