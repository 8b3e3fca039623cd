"""The stage itself: real snapshots of real runs, against a reward that loves length and against an honest one."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from data.records import Message, Prompt
from data.tables import write_table
from models.configs.checkpointing import CheckpointConfig
from models.configs.dpo import DPOConfig
from models.configs.evaluation import EvaluateConfig
from models.configs.grpo import GRPOConfig
from models.configs.nash_md import NashMDConfig
from models.configs.optimisation import OptimConfig
from models.configs.overoptimisation import OveroptimisationConfig
from models.configs.rewards import RewardComponent
from models.configs.sampling import SamplingConfig
from models.evaluation import evaluate
from models.overoptimisation import measure
from models.run import Run
from models.training import dpo, grpo

Read = Callable[[Path], Any]
SHORT = SamplingConfig(max_tokens=5)
CONFIG = OveroptimisationConfig(samples_per_prompt=2, sampling=SHORT, chunk_prompts=2, micro_batch_tokens=64, resamples=1000)
POINT = {"step", "kl_nats", "kl_low", "kl_high", "sqrt_kl", "reward", "held_out_reward", "score"}


@pytest.fixture(scope="module")
def walked(base: Path, tables: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with snapshots of steps 2 and 4, of six."""
    folder = tmp_path_factory.mktemp("walked")
    run = Run(folder / "out", folder / "checkpoints", "key-0")
    for made in (run.out, run.checkpoints):
        made.mkdir()
    checkpoint = CheckpointConfig(every_s=0, snapshots=2)
    config = DPOConfig(batch_size=4, max_updates=6, epochs=6, optim=OptimConfig(learning_rate=1e-2), checkpoint=checkpoint)
    dpo.train(config, policy=base, preferences=tables, seed=0, run=run)
    run.close()
    return run.out


# A hack and an honest run


@pytest.fixture(scope="module")
def letters(bandit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four questions of two or three letters, to each of which b alone is right."""
    folder = tmp_path_factory.mktemp("letters")
    asked = ["".join(letters) for letters in (*product("abcd", repeat=2), *product("ab", repeat=3))]
    prompts = [Prompt(f"p{i}", "letters", (Message("user", text),), "b", "exact") for i, text in enumerate(asked)]
    for table in ("prompts", "test_prompts"):
        write_table(folder / f"{table}.parquet", prompts)
    return folder


@pytest.fixture
def curve_of(bandit: Path, letters: Path, new_run: Callable[..., Run], read_json: Read) -> Callable[[GRPOConfig], dict[str, Any]]:
    def measured(config: GRPOConfig) -> dict[str, Any]:
        trained, judged = new_run("trained"), new_run("judged")
        grpo.train(config, policy=bandit, data=letters, seed=0, run=trained)
        own = OveroptimisationConfig(samples_per_prompt=16, sampling=config.sampling, resamples=1000).trained_on(config)
        measure(own, policy=trained.out, reference=bandit, data=letters, seed=1, run=judged)
        return read_json(judged.out / "overoptimisation.json")

    return measured


TRAINING: dict[str, Any] = {
    "prompts_per_iteration": 16,
    "samples_per_prompt": 8,
    "sampling": SamplingConfig(max_tokens=8),
    "optim": OptimConfig(learning_rate=0.02, schedule="constant"),
    "kl_coefficient": 0.0,
    "checkpoint": CheckpointConfig(every_s=0, snapshots=3),
}


def test_a_run_on_a_reward_that_loves_length_is_found_out(curve_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "loves_length.py").write_text("def reward(prompt, text):\n    return len(text)\n")
    monkeypatch.syspath_prepend(tmp_path)
    term = RewardComponent(name="length", source="callable", callable="loves_length:reward")
    found = curve_of(GRPOConfig(iterations=12, reward="weighted", rewards=(term,), **TRAINING))
    assert found["overoptimised"] and found["recommended_step"] == 0 and found["message"].endswith("Stop at step 0.")
    first, *_, last = found["points"]
    assert [point["step"] for point in found["points"]] == [0, 3, 6, 9, 12]
    assert first["kl_nats"] == 0.0 and first["score"]["low"] > 0
    assert last["reward"]["low"] > 0.5 and last["score"]["high"] < first["score"]["mean"] and last["sqrt_kl"] > 1


def test_an_honest_run_is_left_alone(curve_of: Any) -> None:
    found = curve_of(GRPOConfig(iterations=12, reward="verifier", **TRAINING))
    assert not found["overoptimised"] and found["recommended_step"] >= 9
    first, *_, last = found["points"]
    assert last["score"]["low"] > first["score"]["high"] and last["reward"]["low"] > 0
    assert found["fits"]["score"]["alpha"]["mean"] > 0 or "score" in found["not_fitted"]


# What is written


def test_the_points_are_what_evaluation_says_of_the_same_policies(
    walked: Path, base: Path, tables: Path, reward_folder: Path, new_run: Callable[..., Run], read_json: Read, journal: Any
) -> None:
    run = new_run("curve")
    models = {"reward": reward_folder, "held_out_reward": reward_folder}
    summary = measure(CONFIG, policy=walked, reference=base, data=tables, seed=3, run=run, **models)
    found = read_json(run.out / "overoptimisation.json")
    assert {"points", "recommended_step", "overoptimised", "message"} <= found.keys() and summary["points"] == 4
    assert [set(point) for point in found["points"]] == [POINT] * 4 and [p["step"] for p in found["points"]] == [0, 2, 4, 6]
    assert found["prompts"] == found["prompts_with_verifier"] == 5 and found["markdown"] in (run.out / "overoptimisation.md").read_text()
    asked = EvaluateConfig(samples_per_prompt=2, sampling=SHORT, chunk_prompts=2, micro_batch_tokens=64, greedy=False)
    evaluations = {}
    for point, folder in zip(found["points"], (base, walked / "snapshots/000002", walked / "snapshots/000004", walked), strict=True):
        own = new_run(f"evaluation-{point['step']}")
        evaluations[point["step"]] = evaluate(asked, policy=folder, reference=base, data=tables, seed=3, run=own, **models)
        assert point["kl_nats"] == pytest.approx(evaluations[point["step"]]["eval/kl_nats"], abs=1e-6)
        assert point["score"]["mean"] == pytest.approx(evaluations[point["step"]]["eval/score"])
        assert point["reward"] == pytest.approx(point["held_out_reward"], abs=1e-5), "the same model twice"
        assert point["sqrt_kl"] == pytest.approx(max(point["kl_nats"], 0) ** 0.5)
    rewards = [
        [a["reward"] for row in read_json(new_run("evaluation-0").out / "evaluation.json")["rows"] for a in row["sampled"]],
        evaluations[6]["eval/reward"],
    ]
    mean = sum(rewards[0]) / len(rewards[0])
    deviation = (sum((r - mean) ** 2 for r in rewards[0]) / len(rewards[0])) ** 0.5
    assert found["points"][-1]["reward"]["mean"] == pytest.approx((rewards[1] - mean) / deviation, abs=1e-5)
    reports = dict(journal(run))
    assert list(reports) == [0, 2, 4, 6] and reports[6]["overoptimisation/score"] == found["points"][-1]["score"]["mean"]
    assert reports[2]["overoptimisation/held_out_reward_low"] <= reports[2]["overoptimisation/held_out_reward"]


def test_prompts_without_a_verifier_are_judged_by_the_held_out_reward(
    walked: Path, base: Path, reward_folder: Path, tmp_path: Path, new_run: Callable[..., Run], read_json: Read
) -> None:
    write_table(tmp_path / "test_prompts.parquet", [Prompt(f"p{i}", "toy", (Message("user", f"{i}?"),)) for i in range(3)])
    inputs: dict[str, Any] = {"policy": walked, "reference": base, "data": tmp_path, "reward": reward_folder, "seed": 0}
    run = new_run("curve")
    measure(CONFIG, run=run, held_out_reward=reward_folder, **inputs)
    found = read_json(run.out / "overoptimisation.json")
    assert found["prompts_with_verifier"] == 0 and all(point["score"] is None for point in found["points"])
    assert "held-out reward" in found["message"].lower() and "verifier" not in found["markdown"].lower()
    run = new_run("alone")
    measure(CONFIG, run=run, **inputs)
    assert read_json(run.out / "overoptimisation.json")["recommended_step"] is None


@pytest.mark.parametrize("deaths", [["chunk:2"], ["chunk:5", "stop:2"]])
def test_a_killed_stage_goes_on_with_the_same_numbers(
    deaths: list[str], walked: Path, base: Path, tables: Path, reward_folder: Path, stage_process: Callable[..., Any], tmp_path: Path
) -> None:
    inputs = {"policy": walked, "reference": base, "data": tables, "reward": reward_folder}
    stages = [stage_process(tmp_path / name, "models.overoptimisation:measure", CONFIG, inputs) for name in ("whole", "killed")]
    for death in deaths:
        if death.startswith("stop:"):
            stages[1].stop(int(death.removeprefix("stop:")))
        else:
            stages[1].kill(death)
    for stage in stages:
        stage.run()
    assert stages[0].digests() == stages[1].digests() and stages[0].history() == stages[1].history()


# Settings


def test_the_reward_is_that_of_the_training() -> None:
    term = RewardComponent(name="length", source="callable", callable="loves_length:reward")
    own = CONFIG.trained_on(GRPOConfig(reward="weighted", rewards=(term,)))
    assert own.rewards == (term,) and own.samples_per_prompt == 2 and "rewards.length.callable" in own.cache_extra()
    assert CONFIG.trained_on(GRPOConfig(reward="verifier")).reward == "verifier"
    assert CONFIG.trained_on(DPOConfig()).reward == "reward_model"
    with pytest.raises(ValueError, match="preference_model"):
        CONFIG.trained_on(NashMDConfig(reward="preference_model"))


def test_a_policy_without_snapshots_or_reward_is_refused(base: Path, walked: Path, tables: Path, new_run: Callable[..., Run]) -> None:
    inputs: dict[str, Any] = {"reference": base, "data": tables, "seed": 0}
    with pytest.raises(ValueError, match=r"checkpoint\.snapshots"):
        measure(CONFIG, policy=base, run=new_run("none"), **inputs)
    with pytest.raises(ValueError, match="needs the artifact of a reward_model stage"):
        measure(CONFIG, policy=walked, run=new_run("unscored"), **inputs)
