"""The second reward model in a flow, off by default, with a seed and a label of its own; and the stage that measures both, in a plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import held_out
from flows.held_out import held_out_reward
from models.configs.evaluate_reward import EvaluateRewardConfig
from models.configs.held_out_reward import HeldOutRewardConfig
from models.configs.reward_model import RewardModelConfig
from tasks.evaluate_reward import evaluate_reward
from tasks.plan import planning
from tasks.reward_model import reward_model
from tasks.store import Artifact, Store

FIRST = RewardModelConfig(batch_size=64)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Artifact]:
    """Puts a folder with one file in the store of an output folder of its own."""
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "home"))
    store = Store(tmp_path / "home" / "store")

    def put(name: str) -> Artifact:
        staging = store.new_staging()
        (staging / "out").mkdir()
        (staging / "out" / "name.txt").write_text(name)
        return store.put(staging / "out", name, {})

    return put


def test_off_by_default(stored: Callable[[str], Artifact]):
    with planning() as plan:
        assert held_out_reward(HeldOutRewardConfig(), FIRST, stored("policy"), stored("preferences"), seed=0) is None
    assert plan.entries == []


def test_it_is_the_same_stage_with_another_part_and_another_seed(stored: Callable[[str], Artifact], monkeypatch: pytest.MonkeyPatch):
    calls: list[tuple[Any, ...]] = []

    class Recorded:
        def named(self, label: str) -> Callable[..., None]:
            return lambda config, *inputs, seed: calls.append((label, config, inputs, seed))

    monkeypatch.setattr(held_out, "reward_model", Recorded())
    policy, preferences = stored("policy"), stored("preferences")
    held_out_reward(HeldOutRewardConfig(train=True), FIRST, policy, preferences, seed=3)
    ((label, config, inputs, seed),) = calls
    assert (label, inputs) == ("held out", (policy, preferences)) and config.pairs == "test" and config.batch_size == 8
    assert seed != 3


def test_the_stages_plan(stored: Callable[[str], Artifact]):
    """Both reward models and their evaluations have keys of their own."""
    policy, preferences = stored("policy"), stored("preferences")
    with planning() as plan:
        first = reward_model(FIRST, policy, preferences, seed=0)
        second = held_out_reward(HeldOutRewardConfig(train=True), FIRST, policy, preferences, seed=0)
        assert second is not None
        evaluate_reward(EvaluateRewardConfig(), first, preferences, policy=policy, data=preferences, seed=0)
        evaluate_reward.named("held out")(EvaluateRewardConfig(), second, preferences, seed=0)
    labels = [entry.label for entry in plan.entries]
    assert labels == ["reward_model", "reward_model[held out]", "evaluate_reward", "evaluate_reward[held out]"]
