"""The flow `decoding` on the model made from scratch: one row a way of decoding, and a second run that computes nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.decoding import GUIDED, DecodingConfig
from flows.recipes import configure, load
from tasks import registry
from tasks.plan import planning

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = ["sft.epochs=2", "ppo.iterations=1", "curate.demonstrations=48", "curate.prompts=16", "curate.test_prompts=8"]
ROWS = ["reference", *GUIDED, "dpo", "ppo"]


def run(home: Path) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    words = [word for s in SETTINGS for word in ("--set", s)]
    command = [sys.executable, "-m", "flows.cli", "run", "decoding-tiny", *words]
    environment = {**kept, "POSTTRAIN_HOME": str(home), "POSTTRAIN_THREADS": "1", "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def to_compute(*settings: str) -> set[str]:
    """The stages that a run with these settings would compute."""
    flow, config = configure(load("decoding-tiny"), [*SETTINGS, *settings])
    with planning() as plan:
        flow.fn(config)
    return {entry.label for entry in plan.entries if entry.outcome == "miss"}


def test_every_way_has_a_row_and_a_setting_reaches_its_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run(tmp_path)
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path))
    digest = registry.find("decoding-tiny-1").stages["decoding_comparison"].artifact.digest  # type: ignore[union-attr]
    folder = tmp_path / "store" / "objects" / digest[:2] / digest
    rows = json.loads((folder / "comparison.json").read_text())["rows"]
    assert [row["policy"] for row in rows] == ROWS
    assert all(row["minutes"] > 0 and row["reward"]["se"] > 0 for row in rows)
    assert rows[0]["kl_nats"] == pytest.approx(0, abs=1e-4) and "±" in printed and "minutes" in printed
    assert to_compute() == set()
    assert to_compute("cards.goal=0.7") == {"guided_evaluation[cards]", "decoding_comparison"}


def test_a_row_of_a_recipe_need_not_repeat_its_mode() -> None:
    config = DecodingConfig.model_validate({"args": {"weight": 3}, "prefix_reward": {"epochs": 2}})
    assert (config.args.mode, config.args.weight, config.prefix_reward.loss) == ("args", 3, "prefix_bradley_terry")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"args": {"mode": "cd"}}, "args.mode is 'cd'"),
        ({"evaluation": {"guidance": {"mode": "args"}}}, "evaluation.guidance is that of each row"),
        ({"evaluation": {"sampling": {"temperature": 0}}}, "cards and best_of_n choose among samples"),
        ({"prefix_reward": {"loss": "bradley_terry"}}, "must be prefix_bradley_terry"),
    ],
)
def test_a_row_that_would_be_another_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        DecodingConfig.model_validate(settings)
