"""The whole flow on the model made from scratch: every stage computed, the second run nothing, a killed run as if it had not been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tasks import registry

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["sft.epochs=2", "ppo.iterations=2", "grpo.iterations=2", "ppo.checkpoint.every_updates=1"]
POLICIES = ["base", "sft", "rejection_sampling", "ppo", "grpo", "dpo"]


def command(*settings: str, recipe: str = "tiny") -> list[str]:
    every = [*SETTINGS, *settings] if recipe == "tiny" else settings
    return [sys.executable, "-m", "flows.cli", "run", recipe, *(word for s in every for word in ("--set", s))]


def environment(home: Path) -> dict[str, str]:
    """One process that trains at a time, in one thread: the sums come out the same in every run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    return {**kept, "POSTTRAIN_HOME": str(home), "POSTTRAIN_THREADS": "1"}


def tried(home: Path, *settings: str, recipe: str = "tiny") -> subprocess.CompletedProcess[str]:
    words = command(*settings, recipe=recipe)
    return subprocess.run(words, cwd=ROOT, env=environment(home), capture_output=True, text=True, timeout=400, check=False)


def run(home: Path, *settings: str, recipe: str = "tiny") -> str:
    done = tried(home, *settings, recipe=recipe)
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
    assert changed == {"dpo", "evaluate[dpo]", "behaviour", "comparison"}


def content_of(home: Path, record: registry.RunRecord) -> dict[str, Any]:
    digest = record.stages["comparison"].artifact.digest  # type: ignore[union-attr]
    return json.loads((home / "store" / "objects" / digest[:2] / digest / "comparison.json").read_text())


def test_snapshots_and_a_held_out_reward_lead_to_a_curve(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enough = ["sft.epochs=8", "preferences.samples_per_prompt=6", "preferences.test_share=0.5"]  # that pairs are held out
    run(finished, "grpo.checkpoint.snapshots=1", "held_out_reward.train=true", *enough)
    record = record_of(finished, "tiny", monkeypatch)
    assert {"reward_model[held out]", "evaluate_reward", "evaluate_reward[held out]", "overoptimisation[grpo]"} < set(record.stages)
    content = content_of(finished, record)
    assert [point["step"] for point in content["overoptimisation"]["grpo"]["points"]] == [0, 1, 2]
    assert all(row["held_out_reward"] is not None for row in content["rows"])
    page = registry.report_path(record.name).read_text(encoding="utf-8")
    assert "<script" not in page and "Over-optimisation" in page


def test_policies_of_earlier_runs_are_judged_in_suites(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = [
        "policies={sft: tiny-1/sft, dpo: tiny-1/dpo}",
        "data=tiny-1/curate",
        "reward=tiny-1/reward_model",
        "evaluate={sampling: {max_tokens: 6}}",
        "suites.verifiable=[{samples: 2, pass_at: [2], sampling: {max_tokens: 6}}]",
        "suites.safety=[{sampling: {temperature: 0, max_tokens: 6}}]",
    ]
    run(finished, *settings, recipe="evaluation")
    record = record_of(finished, "evaluation", monkeypatch)
    suites = {"verifiable[sft/verifiable]", "verifiable[dpo/verifiable]", "safety[sft/safety]", "safety[dpo/safety]"}
    assert set(record.stages) == suites | {"evaluate[sft]", "evaluate[dpo]", "behaviour", "comparison"}
    content = content_of(finished, record)
    assert {suite["suite"] for suite in content["suites"]} == {"verifiable", "safety"}
    assert [row["policy"] for row in content["rows"]] == ["sft", "dpo"]
    wrong = tried(finished, *settings, "data=tiny-1/sft", recipe="evaluation")
    assert wrong.returncode != 0 and "'tiny-1/sft' is policy, and a dataset is needed" in wrong.stdout + wrong.stderr


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
