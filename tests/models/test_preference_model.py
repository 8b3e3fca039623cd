"""Preference models of two arguments: antisymmetry to the bit, the form by hand, and circles that no reward model can hold."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data.packing import Group, pack
from data.records import Message, Preference
from data.tables import write_table
from models.configs.optimisation import OptimConfig
from models.configs.preference_model import PreferenceModelConfig
from models.configs.reward_model import RewardModelConfig
from models.heads import load_scalar
from models.losses.preference_model import preference_loss
from models.losses.reward_model import bradley_terry_loss
from models.preference_model import advantage, load_preference, load_preference_model, new_preference_model, save_preference_model
from models.run import Run
from models.training import preference_model, reward_model

FAST = OptimConfig(learning_rate=1e-2, schedule="constant", warmup_share=0)
ROCK, PAPER, SCISSORS = 2, 3, 4


def doubles(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The form


def test_by_hand():
    """(r, u, w) = (1, 1, 0) against (0, 0, 2)."""
    first, second = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.0, 0.0, 2.0])
    assert (float(advantage(first, second)), float(advantage(second, first))) == (3.0, -3.0)
    loss, _ = preference_loss(torch.ones(1), 1)
    assert float(loss) == pytest.approx(0.313262, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_swapping_the_arguments_negates_to_the_bit(dtype: torch.dtype):
    first, second = doubles(500, 9, seed=1).to(dtype), doubles(500, 9, seed=2).to(dtype)
    assert torch.equal(advantage(first, second), -advantage(second, first))
    assert not advantage(first, first).any()


def test_against_numpy_and_by_gradient():
    first, second = doubles(6, 7, seed=1), doubles(6, 7, seed=2)
    skew = np.zeros((7, 7))
    for k in range(3):
        skew[1 + 2 * k, 2 + 2 * k], skew[2 + 2 * k, 1 + 2 * k] = 1, -1
    wanted = (first - second)[:, 0].numpy() + np.einsum("pi,ij,pj->p", first.numpy(), skew, second.numpy())
    np.testing.assert_allclose(advantage(first, second).numpy(), wanted, atol=1e-12)
    loss = preference_loss(advantage(first, second), 11)[0]
    assert float(loss) == pytest.approx(np.log1p(np.exp(-wanted)).sum() / 11, abs=1e-12)
    assert torch.autograd.gradcheck(lambda a, b: preference_loss(advantage(a, b), 11)[0], (first.requires_grad_(), second.requires_grad_()))


def test_strength_alone_is_bradley_terry():
    first, second = doubles(6, 5, seed=1), doubles(6, 5, seed=2)
    first[:, 1:] = 0
    wanted = bradley_terry_loss(first[:, 0], second[:, 0], torch.zeros(6), 6)[0]
    torch.testing.assert_close(preference_loss(advantage(first, second), 6)[0], wanted)


# The model


def test_probabilities_sum_to_one_whatever_else_is_in_the_batch(base: Path, other: Path, tmp_path: Path, random_groups: Callable):
    model = new_preference_model(other, planes=2, seed=1)
    save_preference_model(model, base, tmp_path)
    preference = load_preference(tmp_path, max_tokens=20)
    groups = random_groups(5, 2)
    prompts, first, second = [g.prompt for g in groups], [g.completions[0] for g in groups], [g.completions[1] for g in groups]
    p = preference(prompts, first, second)
    assert p.shape == (5,) and float(p.std()) > 0.01
    torch.testing.assert_close(p, 1 - preference(prompts, second, first), rtol=0, atol=1e-6)
    alone = [float(preference([g.prompt], [g.completions[0]], [g.completions[1]])) for g in groups]
    assert p.tolist() == pytest.approx(alone, abs=1e-5)
    numbers_PW = model.read(pack([Group([5, 6], [[7, 8], [9]])]))
    wanted = advantage(numbers_PW[0], numbers_PW[1]).sigmoid()
    assert float(preference([[5, 6]], [[7, 8]], [[9]])) == pytest.approx(float(wanted.detach()), abs=1e-6)


def test_of_a_group_every_comparison(base: Path, random_groups: Callable):
    model = new_preference_model(base, planes=2, seed=1)
    groups = random_groups(3, 4)
    matrices = model.matrices(groups, 30)
    for matrix in matrices:
        assert torch.equal(matrix.diagonal(), torch.full((4,), 0.5))
        torch.testing.assert_close(matrix + matrix.T, torch.ones(4, 4), rtol=0, atol=1e-6)
    numbers = model.embed(groups[:1], 99)
    assert float(matrices[0][1, 3]) == pytest.approx(float(advantage(numbers[1], numbers[3]).sigmoid()), abs=1e-6)


def test_on_disk_it_is_neither_a_policy_nor_a_reward_model(base: Path, reward_folder: Path, tmp_path: Path):
    model = new_preference_model(base, planes=3, seed=1)
    save_preference_model(model, base, tmp_path)
    again = load_preference_model(tmp_path)
    assert again.planes == 3 and torch.equal(again.head.weight, model.head.weight)
    assert not any(p.requires_grad for p in again.parameters())
    with pytest.raises(ValueError, match="it is not a reward model"):
        load_scalar(tmp_path)
    with pytest.raises(ValueError, match=r"it is not a preference model\. Give the artifact of the preference_model stage"):
        load_preference(reward_folder)


def test_it_is_not_trained_where_no_sampled_completion_ends(bandit: Path, circle: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(preference_model, "eos_ids", lambda folder, tokenizer: [4])
    with pytest.raises(ValueError, match=r"ends in token 0, not in an end-of-turn token \(\[4\]\)"):
        preference_model.train(PreferenceModelConfig(), policy=bandit, preferences=circle, seed=0, run=run)


# Rock, paper, scissors


@pytest.fixture
def circle(tmp_path: Path) -> Path:
    """b beats c, c beats d, d beats b; held out are the same."""
    question = (Message("user", "a"),)
    pairs = [Preference(f"p{better}", "game", question, better, worse) for better, worse in ("bc", "cd", "db")]
    for name in ("preferences", "test_preferences"):
        write_table(tmp_path / f"{name}.parquet", pairs)
    return tmp_path


def test_it_learns_a_circle_which_bradley_terry_cannot(bandit: Path, circle: Path, new_run: Callable[..., Run], journal: Callable):
    shared: dict[str, Any] = {"epochs": 60, "batch_size": 3, "optim": FAST}
    two, one = new_run("two"), new_run("one")
    meta = preference_model.train(PreferenceModelConfig(planes=1, **shared), policy=bandit, preferences=circle, seed=0, run=two)
    preference = load_preference(two.out)
    first, second = [[ROCK, 0], [PAPER, 0], [SCISSORS, 0]], [[PAPER, 0], [SCISSORS, 0], [ROCK, 0]]
    assert float(preference([[1]] * 3, first, second).min()) > 0.9
    assert float(preference([[1]] * 3, second, first).max()) < 0.1
    assert meta["accuracy"] == 1.0 and meta["brier"] < 0.01 and (two.out / "report.json").is_file()
    scalar = reward_model.train(RewardModelConfig(**shared), policy=bandit, preferences=circle, seed=0, run=one)
    assert scalar["accuracy"] < 0.7, "an order of three breaks at least one of the circle's preferences"
    losses = [metrics["train/loss"] for _, metrics in journal(one) if "train/loss" in metrics]
    assert min(losses) >= math.log(2) - 1e-6, "its best is a coin"
