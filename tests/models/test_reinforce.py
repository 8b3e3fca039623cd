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
from data.records import Prompt
from data.tables import read_table
from models.advantages import BASELINES, MovingAverage, explained_variance, reward_to_go
from models.configs.optimisation import OptimConfig
from models.configs.reinforce import ActorCriticConfig, ReinforceConfig
from models.configs.rewards import RewardComponent
from models.configs.sampling import SamplingConfig
from models.heads import load_scalar
from models.loading import load_policy
from models.logprobs import token_logps
from models.losses.policy_gradient import reinforce_loss
from models.losses.sums import merge
from models.rewards import Scored
from models.run import Run
from models.training import actor_critic, reinforce
from models.training.actor_critic import ActorCritic
from models.training.reinforce import Reinforce
from models.training.rollout import OnPolicy

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


# The stages

LONG: Any = {"prompts_per_iteration": 4, "samples_per_prompt": 3, "micro_batch_tokens": 40, "kl_coefficient": 0.3}


def made(kind: type[OnPolicy], config: Any, base: Path, other: Path, tables: Path, tokenizer: Any, run: Run) -> Any:
    """An algorithm whose reference is another policy than the one that learns, and whose reward knows the order of samples."""

    def score(prompts: Any, groups: Any) -> Scored:
        return Scored([[g * g + 0.5 * p for g in range(len(group.completions))] for p, group in enumerate(groups)])

    prompts = read_table(tables / "prompts.parquet", Prompt)
    algorithm: Any = kind(load_policy(base, trainable=True), prompts, tokenizer, score, list(range(0, 259, 5)), config, 5, run)
    algorithm.reference = load_policy(other)
    return algorithm


def one_by_one(model: Any, rollout: Any) -> list[Tensor]:
    """Log-probabilities of each completion of a round, each on its own, at the sampling temperature."""
    every = [pack([Group(group.prompt, [c])]) for group in rollout.groups for c in group.completions]
    return [token_logps(model, packed, 0.8)[0].detach() for packed in every]


def test_reinforce_is_its_formula(base: Path, other: Path, tables: Path, tokenizer: Any, run: Run):
    """-1/C sum_i (R_i - mean of the others) sum_t logp with R = score - 0.3 sum_t (logp - ref), over several micro-batches."""
    config = ReinforceConfig(**LONG, sampling=SamplingConfig(temperature=0.8, max_tokens=6))
    algorithm = made(Reinforce, config, base, other, tables, tokenizer, run)
    batches = algorithm.batches(0)
    logps, refs = (one_by_one(model, algorithm.rollout) for model in (algorithm.policy, algorithm.reference))
    kl = [float((logp - ref).sum()) for logp, ref in zip(logps, refs, strict=True)]
    reward_PG = np.array([g * g + 0.5 * p for p in range(4) for g in range(3)]).reshape(4, 3) - 0.3 * np.array(kl).reshape(4, 3)
    advantage = [row[g] - np.delete(row, g).mean() for row in reward_PG for g in range(3)]
    wanted = -sum(a * float(logp.sum()) for a, logp in zip(advantage, logps, strict=True)) / 12
    assert len(batches) > 1
    assert sum(float(algorithm.loss(batch)[0].detach()) for batch in batches) == pytest.approx(wanted, rel=1e-4)
    assert algorithm.rollout.metrics["train/kl_nats"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert algorithm.rollout.metrics["reinforce/reward"] == pytest.approx(reward_PG.mean(), rel=1e-4)


def test_the_actor_critic_is_its_formula(base: Path, other: Path, reward_folder: Path, tables: Path, tokenizer: Any, run: Run):
    """-1/C sum_it (G_t - V_t) logp_t + 0.7 * mean over tokens of 1/2 (V_t - G_t)^2, gamma 0.9."""
    shape: Any = {"discount": 0.9, "value_coefficient": 0.7, "sampling": SamplingConfig(temperature=0.8, max_tokens=6)}
    algorithm = made(ActorCritic, ActorCriticConfig(**LONG, **shape), base, other, tables, tokenizer, run)
    algorithm.critic = load_scalar(reward_folder, trainable=True)
    batches = algorithm.batches(0)
    rollout = algorithm.rollout
    logps, refs = (one_by_one(model, rollout) for model in (algorithm.policy, algorithm.reference))
    every = [pack([Group(group.prompt, [c])]) for group in rollout.groups for c in group.completions]
    values = [algorithm.critic.before_tokens(packed).detach().numpy() for packed in every]
    actor, errors = 0.0, []
    for i, (logp, ref, value) in enumerate(zip(logps, refs, values, strict=True)):
        reward = -0.3 * (logp - ref).numpy()
        reward[-1] += (i % 3) ** 2 + 0.5 * (i // 3)
        to_go = np.array([sum(0.9 ** (j - t) * reward[j] for j in range(t, len(reward))) for t in range(len(reward))])
        actor -= float(((to_go - value) * logp.numpy()).sum()) / 12
        errors += list(0.5 * (value - to_go) ** 2)
    found = [algorithm.loss(batch) for batch in batches]
    assert len(found) > 1
    assert sum(float(loss.detach()) for loss, _ in found) == pytest.approx(actor + 0.7 * float(np.mean(errors)), rel=1e-4)
    metrics = merge(sums for _, sums in found)
    assert metrics["train/loss"] == pytest.approx(actor, rel=1e-4) and metrics["ppo/value_loss"] == pytest.approx(np.mean(errors), rel=1e-4)


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
MANY = {"prompts_per_iteration": 1, "samples_per_prompt": 256, "optim": SLOWING, "sampling": SamplingConfig(max_tokens=1)}


@pytest.mark.parametrize("stage", ["leave_one_out", "moving_average", "actor_critic"])
def test_with_a_price_of_kl_the_optimum_is_the_reference_tilted_by_the_reward(stage: Any, bandit: Path, run: Run, graded: dict[str, Any]):
    shape = MANY | graded | {"kl_coefficient": 0.7, "iterations": 36}
    if stage == "actor_critic":
        actor_critic.train(ActorCriticConfig(**shape, value_optim=SLOWING), policy=bandit, data=bandit, seed=0, run=run)
    else:
        reinforce.train(ReinforceConfig(**shape, baseline=stage), policy=bandit, data=bandit, seed=0, run=run)
    wanted = regularised_optimum(bandit, 0.7)
    assert float((wanted - chances(bandit)).abs().sum() / 2) > 0.2, "far from where it began"
    assert float((wanted - chances(run.out)).abs().sum() / 2) < 0.05


def test_what_the_method_cannot_do_is_refused():
    with pytest.raises(ValueError, match="no ratio to mend that; use 1 and 1, or ppo"):
        ReinforceConfig(epochs=2)
    with pytest.raises(ValueError, match="leave_one_out needs the other samples"):
        ReinforceConfig(samples_per_prompt=1)
