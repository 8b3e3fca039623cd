"""REINFORCE and the actor-critic: baselines by hand and by enumeration, the loss against NumPy, and the optimum that is known."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.packing import Group, pack
from models.advantages import BASELINES, MovingAverage, explained_variance, reward_to_go
from models.configs.optimisation import OptimConfig
from models.configs.reinforce import ActorCriticConfig, ReinforceConfig
from models.configs.rewards import RewardComponent
from models.configs.sampling import SamplingConfig
from models.loading import load_policy
from models.logprobs import token_logps
from models.losses.policy_gradient import reinforce_loss
from models.run import Run
from models.training import actor_critic, reinforce

FAST = OptimConfig(learning_rate=3e-2, schedule="constant", warmup_share=0)
ROUND = {"prompts_per_iteration": 4, "samples_per_prompt": 8, "iterations": 14, "optim": FAST, "sampling": SamplingConfig(max_tokens=1)}
FREE = {"reward": "verifier", "kl_coefficient": 0.0}
A, B = 1, 2  # token ids of the letters


def doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def chances(folder: Path) -> Tensor:
    """What the policy answers to "a", over all five tokens."""
    return token_logps(load_policy(folder), pack([Group([A], [[token] for token in range(5)])]))[0].exp()


# Baselines


REWARDS = torch.tensor([[1.0, 0.0, 0.0, 3.0]])


@pytest.mark.parametrize(
    ("baseline", "advantages"),
    [
        ("none", [1.0, 0.0, 0.0, 3.0]),
        ("batch_mean", [0.0, -1.0, -1.0, 2.0]),
        ("moving_average", [-1.0, -2.0, -2.0, 1.0]),
        ("leave_one_out", [0.0, -4 / 3, -4 / 3, 8 / 3]),
    ],
)
def test_baselines_by_hand(baseline: str, advantages: list[float]):
    """Rounds of mean 1 and then 2.5 at decay 0.5 have the moving average (0.5 * 1 + 2.5) / 1.5 = 2."""
    average = MovingAverage(0.5)
    average.add(1.0)
    average.add(2.5)
    torch.testing.assert_close(BASELINES[baseline](REWARDS, average), torch.tensor([advantages]))


def test_the_moving_average_is_nothing_before_the_first_round_and_then_the_first():
    average = MovingAverage(0.9)
    assert average.value == 0
    average.add(4.0)
    assert average.value == 4.0


def test_leave_one_out_is_the_mean_of_the_other_samples():
    reward_PG = doubles(3, 5, seed=1).numpy()
    wanted = [[row[g] - np.delete(row, g).mean() for g in range(5)] for row in reward_PG]
    np.testing.assert_allclose(BASELINES["leave_one_out"](torch.tensor(reward_PG), MovingAverage(0.9)).numpy(), wanted, atol=1e-12)


def expected_gradient(baseline: str, logits_V: Tensor, value_V: Tensor, samples: int) -> Tensor:
    """E[mean_i A_i grad log pi(a_i)] over every way to draw ``samples`` answers."""
    probability_V = logits_V.softmax(-1)
    average = MovingAverage(0.9)
    average.add(0.7)
    total = torch.zeros_like(logits_V)
    for drawn in itertools.product(range(len(logits_V)), repeat=samples):
        advantage_1G = BASELINES[baseline](value_V[list(drawn)][None], average)
        scores_GV = torch.eye(len(logits_V), dtype=torch.float64)[list(drawn)] - probability_V
        total += probability_V[list(drawn)].prod() * (advantage_1G[0, :, None] * scores_GV).mean(0)
    return total


@pytest.mark.parametrize(("baseline", "share"), [("none", 1), ("moving_average", 1), ("leave_one_out", 1), ("batch_mean", 2 / 3)])
def test_a_baseline_leaves_the_expected_gradient_where_it_is(baseline: str, share: float):
    """E[b grad log pi] = 0 for a baseline that does not know the sample; the batch mean holds each of C once: 1 - 1/C is left."""
    logits_V, value_V = doubles(3, seed=1), doubles(3, seed=2)
    probability_V = logits_V.softmax(-1)
    exact_V = probability_V * (value_V - probability_V @ value_V)  # grad of sum_a pi(a) r(a)
    torch.testing.assert_close(expected_gradient(baseline, logits_V, value_V, 3), share * exact_V, rtol=0, atol=1e-12)


def test_rewards_to_go_less_values_by_hand():
    ones = torch.ones(1, 2, dtype=torch.bool)
    advantage, returns = reward_to_go(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.8]]), ones, 1.0)
    torch.testing.assert_close(advantage, torch.tensor([[0.5, 0.2]]))
    torch.testing.assert_close(returns, torch.tensor([[1.0, 1.0]]))


def test_explained_variance_by_hand():
    values, returns, ones = torch.tensor([[1.0, 2.0, 9.0]]), torch.tensor([[1.0, 3.0, 0.0]]), torch.tensor([[True, True, False]])
    assert explained_variance(values, returns, ones) == pytest.approx(0.75)
    assert explained_variance(returns, returns, ones) == 1
    assert explained_variance(torch.full((1, 3), 5.0), returns, ones) == pytest.approx(0)


# The loss

MASK = torch.arange(4) < torch.tensor([4, 1, 3])[:, None]


def test_the_loss_by_hand():
    """logp (-1, -2) at A 2, and (-3) at A -1: (6 - 3) / 2 = 1.5."""
    logp, mask = torch.tensor([[-1.0, -2.0], [-3.0, -9.0]]), torch.tensor([[True, True], [True, False]])
    loss, sums = reinforce_loss(logp, torch.tensor([[2.0, 2.0], [-1.0, -1.0]]), mask, 2)
    assert float(loss) == 1.5 and float(sums["train/loss"][0]) / sums["train/loss"][1] == 1.5


def test_the_loss_against_numpy_and_cut_in_two():
    logp, advantage = doubles(3, 4, seed=1), doubles(3, 4, seed=2)
    wanted = -sum((logp * advantage).numpy()[c, :length].sum() for c, length in enumerate([4, 1, 3])) / 3
    assert float(reinforce_loss(logp, advantage, MASK, 3)[0]) == pytest.approx(wanted, abs=1e-12)
    cut = [reinforce_loss(logp[rows], advantage[rows], MASK[rows], 3)[0] for rows in (slice(0, 1), slice(1, 3))]
    assert float(sum(cut)) == pytest.approx(wanted, abs=1e-12)
    logp.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: reinforce_loss(x, advantage, MASK, 3)[0], logp)


# Learning


@pytest.mark.parametrize("baseline", list(BASELINES))
def test_every_baseline_moves_probability_to_what_is_rewarded(baseline: Any, bandit: Path, run: Run, journal: Callable):
    config = ReinforceConfig(**ROUND, **FREE, baseline=baseline)
    reinforce.train(config, policy=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out)[B] > 0.8
    history = [metrics for _, metrics in journal(run)]
    assert "train/kl_nats" not in history[0] and history[-1]["train/entropy_nats"] < history[0]["train/entropy_nats"]
    assert history[1]["reinforce/moving_average"] == pytest.approx(history[0]["train/reward"])


def test_the_actor_critic_learns_and_so_does_its_critic(bandit: Path, run: Run, journal: Callable):
    config = ActorCriticConfig(**ROUND, **FREE, value_optim=FAST)
    actor_critic.train(config, policy=bandit, data=bandit, seed=0, run=run)
    assert chances(run.out)[B] > 0.8
    history = [metrics for _, metrics in journal(run)]
    assert history[-1]["ppo/value_loss"] < history[0]["ppo/value_loss"] / 2


GRADES = {"": -0.5, "a": 0.0, "b": 1.0, "c": 0.5, "d": -1.0}
GRADER = f"def grade(prompt, text):\n    return {GRADES!r}[text]\n"


@pytest.fixture
def graded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A reward by a Python function: another number for each of the five answers."""
    (tmp_path / "bandit_grades.py").write_text(GRADER)
    monkeypatch.syspath_prepend(tmp_path)
    return {"reward": "weighted", "rewards": [RewardComponent(name="grade", source="callable", callable="bandit_grades:grade")]}


def regularised_optimum(bandit: Path, beta: float) -> Tensor:
    """pi_ref exp(r / beta) / Z over the five completions of one token."""
    weights = chances(bandit) * torch.tensor([GRADES[text] for text in ("", *"abcd")]).div(beta).exp()
    return weights / weights.sum()


SLOWING = OptimConfig(learning_rate=2e-2, schedule="linear", final_rate_share=0.02, warmup_share=0, beta2=0.95)
MANY = {"prompts_per_iteration": 1, "samples_per_prompt": 384, "optim": SLOWING, "sampling": SamplingConfig(max_tokens=1)}


@pytest.mark.parametrize("stage", ["leave_one_out", "moving_average", "actor_critic"])
def test_with_a_price_of_kl_the_optimum_is_the_reference_tilted_by_the_reward(stage: Any, bandit: Path, run: Run, graded: dict[str, Any]):
    shape = MANY | graded | {"kl_coefficient": 0.7, "iterations": 40}
    if stage == "actor_critic":
        actor_critic.train(ActorCriticConfig(**shape, value_optim=SLOWING), policy=bandit, data=bandit, seed=0, run=run)
    else:
        reinforce.train(ReinforceConfig(**shape, baseline=stage), policy=bandit, data=bandit, seed=0, run=run)
    wanted = regularised_optimum(bandit, 0.7)
    assert float((wanted - chances(bandit)).abs().sum() / 2) > 0.2, "far from where it began"
    assert float((wanted - chances(run.out)).abs().sum() / 2) < 0.03


def test_what_the_method_cannot_do_is_refused():
    with pytest.raises(ValueError, match="no ratio to mend that; use 1 and 1, or ppo"):
        ReinforceConfig(epochs=2)
    with pytest.raises(ValueError, match="leave_one_out needs the other samples"):
        ReinforceConfig(samples_per_prompt=1)
