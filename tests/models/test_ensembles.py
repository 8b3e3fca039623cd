"""Ensembles: how members become one reward, that a folder takes the place of a reward model, that members disagree off their data."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.packing import Group
from data.records import Message, Preference
from data.tables import write_table
from models import ensembles
from models.configs.ensembles import EnsembleConfig
from models.configs.evaluation import EvaluateConfig
from models.configs.grpo import GRPOConfig
from models.configs.optimisation import OptimConfig
from models.configs.ppo import PPOConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sampling import SamplingConfig
from models.ensembles import Ensemble, aggregate_scores, load_reward
from models.evaluation import evaluate
from models.heads import RewardRule, load_scalar, new_scalar, save_scalar
from models.rewards import reward_function, score_groups
from models.run import Run
from models.training import grpo, ppo, rejection_sampling, reward_model
from models.training.reward_ensemble import combine

FAST = OptimConfig(learning_rate=1e-2, schedule="constant", warmup_share=0)
GROUPS = [Group([5, 6], [[8, 9], [10]]), Group([11], [[12, 13, 14]])]


@pytest.fixture(scope="module")
def members(base: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two reward models with rules of their own."""
    folders = []
    for number, parent in enumerate((base, other)):
        folder = tmp_path_factory.mktemp(f"member{number}")
        model = new_scalar(parent, seed=number)
        model.rule = RewardRule(mean=0.5 * number, deviation=1.0 + number, trained_pairs=3)
        save_scalar(model, parent, folder)
        folders.append(folder)
    return folders


@pytest.mark.parametrize(("rule", "wanted"), [("mean", 2.0), ("worst", 1.0), ("uncertainty", 1.5)])
def test_by_hand(rule: str, wanted: float):
    """Members (1, 3), coefficient 0.5."""
    assert float(aggregate_scores(torch.tensor([[1.0], [3.0]]), rule, 0.5)) == wanted


def test_against_numpy_and_whatever_the_order_of_the_members():
    score_MC = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = score_MC.numpy()
    wanted = {"mean": values.mean(0), "worst": values.min(0), "uncertainty": values.mean(0) - 0.7 * values.std(0)}
    for rule, expected in wanted.items():
        np.testing.assert_allclose(aggregate_scores(score_MC, rule, 0.7).numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(aggregate_scores(score_MC.flip(0), rule, 0.7).numpy(), expected, atol=1e-12)
    same = score_MC[:1].expand(4, -1)
    for rule in wanted:
        torch.testing.assert_close(aggregate_scores(same, rule, 0.7), same[0], msg="members that agree are one reward model")


@pytest.mark.parametrize("aggregate", ["mean", "worst", "uncertainty"])
def test_each_member_is_normalised_by_its_own_rule(members: list[Path], run: Run, aggregate: Any):
    assert combine(EnsembleConfig(aggregate=aggregate), members=members, seed=0, run=run) == {"members": 2}
    rows = [score_groups(load_scalar(folder), GROUPS, 99) for folder in members]
    score_MC = torch.tensor([[s for row in own for s in row] for own in rows])
    wanted = aggregate_scores(score_MC, aggregate, 1.0)
    found = score_groups(load_reward(run.out), GROUPS, 2)
    assert [len(row) for row in found] == [2, 1]
    torch.testing.assert_close(torch.tensor([s for row in found for s in row]), wanted, rtol=0, atol=1e-5)


def test_one_member_is_in_memory_at_a_time(members: list[Path], monkeypatch: pytest.MonkeyPatch):
    alive, most = [], []

    class Member:
        def __init__(self, folder: Path, device: Any) -> None:
            alive.append(folder)
            most.append(len(alive))

        def score(self, groups: Any, max_tokens: int) -> torch.Tensor:
            return torch.zeros(3)

        def __del__(self) -> None:
            alive.pop()

    monkeypatch.setattr(ensembles, "load_scalar", Member)
    Ensemble(tuple(members) * 3, "mean", 1.0).score(GROUPS, 99)
    assert most == [1] * 6


# What is refused


@pytest.mark.parametrize(
    ("chosen", "fault"),
    [
        ([0], "an ensemble of 1 has no spread: give at least two reward models"),
        ([0, 1, 0], "members 0 and 2 are the same model and cannot disagree: train each with its own seed"),
    ],
)
def test_members_without_spread_are_refused(members: list[Path], run: Run, chosen: list[int], fault: str):
    with pytest.raises(ValueError, match=fault):
        combine(EnsembleConfig(aggregate="worst"), members=[members[i] for i in chosen], seed=0, run=run)


def test_a_coefficient_that_nothing_reads_is_refused():
    with pytest.raises(ValueError, match=r"coefficient 0\.5 is not read by aggregate worst: use uncertainty"):
        EnsembleConfig(aggregate="worst", coefficient=0.5)
    assert EnsembleConfig(aggregate="uncertainty", coefficient=0.5).coefficient == 0.5


def test_policies_and_strange_tokenizers_are_refused(members: list[Path], base: Path, bandit: Path, run: Run, tmp_path: Path):
    with pytest.raises(ValueError, match=r"has no scalar_head\.safetensors: members are artifacts of the reward_model stage"):
        combine(EnsembleConfig(), members=[members[0], base], seed=0, run=run)
    save_scalar(new_scalar(bandit, 0), bandit, tmp_path)
    with pytest.raises(ValueError, match="the members have different tokenizers"):
        combine(EnsembleConfig(), members=[members[0], tmp_path], seed=0, run=run)


# In place of a reward model


@pytest.fixture(scope="module")
def ensemble(members: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = Run(tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("checkpoints"), "key-0")
    combine(EnsembleConfig(aggregate="uncertainty"), members=members, seed=0, run=run)
    return run.out


ROUNDS: Mapping[str, Any] = {
    "iterations": 1,
    "prompts_per_iteration": 2,
    "samples_per_prompt": 2,
    "reward": "reward_model",
    "sampling": SamplingConfig(max_tokens=4),
}


@pytest.mark.parametrize(("module", "config"), [(grpo, GRPOConfig(**ROUNDS)), (ppo, PPOConfig(**ROUNDS))], ids=["grpo", "ppo"])
def test_policies_learn_from_it_and_its_disagreement_is_reported(
    module: Any, config: Any, ensemble: Path, base: Path, tables: Path, run: Run, journal: Callable
):
    module.train(config, policy=base, data=tables, reward=ensemble, seed=0, run=run)
    assert journal(run)[0][1]["train/reward_disagreement"] > 0.01


def test_a_single_reward_model_has_nothing_to_disagree_with(reward_folder: Path, ensemble: Path, tokenizer: Any):
    single = reward_function("reward_model", tokenizer, reward_folder, torch.device("cpu"))
    assert single([], GROUPS).metrics == {}
    several = reward_function("reward_model", tokenizer, ensemble, torch.device("cpu"))
    spread = load_reward(ensemble).member_scores(GROUPS, 99).std(0, correction=0)
    assert several([], GROUPS).metrics == {"train/reward_disagreement": pytest.approx(float(spread.mean()))}


def test_evaluation_and_rejection_sampling_take_it(ensemble: Path, base: Path, tables: Path, new_run: Callable[..., Run]):
    config = EvaluateConfig(judge="reward_model", sampling=SamplingConfig(max_tokens=4), prompts=2)
    assert "eval/reward" in evaluate(config, policy=base, reference=base, data=tables, reward=ensemble, seed=0, run=new_run("evaluation"))
    config = RejectionSamplingConfig(max_updates=1)
    assert rejection_sampling.train(config, policy=base, preferences=tables, reward=ensemble, seed=0, run=new_run("rs"))["kept"] == 8


# Trained with different seeds


def test_members_agree_on_their_data_and_disagree_elsewhere(bandit: Path, new_run: Callable[..., Run], tmp_path: Path):
    question = (Message("user", "a"),)
    for name in ("preferences", "test_preferences"):
        write_table(tmp_path / f"{name}.parquet", [Preference("c", "toy", question, "b", "c")])
    folders = []
    for seed in range(4):
        run = new_run(f"member-{seed}")
        config = RewardModelConfig(epochs=40, batch_size=1, optim=FAST)
        reward_model.train(config, policy=bandit, preferences=tmp_path, seed=seed, run=run)
        folders.append(run.out)
    run = new_run("ensemble")
    meta = combine(EnsembleConfig(), members=folders, preferences=tmp_path, seed=0, run=run)
    spread = load_reward(run.out).member_scores([Group([1], [[2, 0], [3, 0]]), Group([1], [[4, 0], [1, 0], [4, 4, 1, 0]])], 99).std(0)
    assert float(spread[:2].max()) < 0.2 < float(spread[2:].min())
    assert meta["accuracy"] == meta["accuracy_aggregated"] == 1.0 and meta["disagreement"] < 0.2 and (run.out / "report.json").is_file()
