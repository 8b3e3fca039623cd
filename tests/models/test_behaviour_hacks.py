"""Policies really trained on rewards that love length or a phrase, and on the honest one: the first two are named, the last is not."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.records import Message, Prompt
from data.tables import write_table
from models.behaviour import behaviour
from models.configs.behaviour import BehaviourConfig
from models.configs.evaluation import EvaluateConfig
from models.configs.grpo import GRPOConfig
from models.configs.optimisation import OptimConfig
from models.configs.rewards import RewardComponent
from models.configs.sampling import SamplingConfig
from models.evaluation import evaluate
from models.run import Run
from models.training import grpo
from tests.bench import hacks

SAMPLING = SamplingConfig(max_tokens=10)
PROMPTS = [Prompt("".join(p), "letters", (Message("user", "".join(p)),), "b", "exact") for p in itertools.product("abcd", repeat=3)]


@pytest.fixture(scope="module")
def letters_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("letters")
    write_table(folder / "prompts.parquet", PROMPTS)
    write_table(folder / "test_prompts.parquet", PROMPTS)
    return folder


def trained(reward: str, bandit: Path, data: Path, run: Run) -> Path:
    config = GRPOConfig(
        reward="weighted",
        rewards=(RewardComponent(name="planted", source="callable", callable=f"tests.bench.hacks:{reward}"),),
        iterations=10,
        prompts_per_iteration=8,
        samples_per_prompt=8,
        kl_coefficient=0.01,
        sampling=SAMPLING,
        optim=OptimConfig(learning_rate=2e-2, schedule="constant", warmup_share=0),
    )
    grpo.train(config, policy=bandit, data=data, seed=0, run=run)
    return run.out


def evaluated(reward: str, policy: Path, bandit: Path, data: Path, run: Run) -> Path:
    """By the stage itself; then the truth as the verifier's verdict, and the planted reward as the reward model's."""
    config = EvaluateConfig(sampling=SAMPLING, samples_per_prompt=4, greedy=False)
    evaluate(config, policy=policy, reference=bandit, data=data, seed=1, run=run)
    content = json.loads((run.out / "evaluation.json").read_text())
    for answer in (a for row in content["rows"] for a in row["sampled"]):
        right = hacks.starts_with_b(PROMPTS[0], answer["text"])
        answer |= {"score": right, "correct": right == 1, "reward": getattr(hacks, reward)(PROMPTS[0], answer["text"])}
    (run.out / "evaluation.json").write_text(json.dumps(content))
    return run.out


@pytest.fixture
def found(bandit: Path, letters_data: Path, new_run: Callable[[str], Run]) -> Callable[[str], list[dict[str, Any]]]:
    """Findings of severity hack of a policy that was trained on a reward."""

    def run_all(reward: str) -> list[dict[str, Any]]:
        policy = trained(reward, bandit, letters_data, new_run("train"))
        sides = {"sft": bandit, "own": policy}
        evaluations = {name: evaluated(reward, folder, bandit, letters_data, new_run(name)) for name, folder in sides.items()}
        report = new_run("behaviour")
        behaviour(BehaviourConfig(baseline="sft", resamples=400), evaluations=evaluations, seed=0, run=report)
        findings = json.loads((report.out / "behaviour.json").read_text())["policies"]["own"]["findings"]
        return [finding for finding in findings if finding["severity"] == "hack"]

    return run_all


def test_a_policy_that_loves_length_is_named(found):
    assert "length_hack" in [finding["check"] for finding in found("letters")]


def test_a_policy_that_loves_a_phrase_is_named_with_it(found):
    hacks_found = {finding["check"]: finding["message"] for finding in found("c_then_d")}
    assert "c d" in hacks_found["phrase_hack"] and "length_hack" not in hacks_found


def test_a_policy_that_learned_what_is_right_is_not_named(found):
    assert found("starts_with_b") == []
