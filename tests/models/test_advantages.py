"""Advantages by hand and against the definitions, written out without recursion."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.advantages import gae, group_advantages, token_rewards, whiten

C, T = 5, 7
LENGTHS = [7, 1, 4, 6, 2]
MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]


def doubles(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_gae(reward: np.ndarray, value: np.ndarray, discount: float, decay: float) -> np.ndarray:
    """A_t = sum_k (gamma lambda)^k delta_{t+k}, every sum on its own."""
    following = np.append(value[1:], 0.0)
    delta = reward + discount * following - value
    return np.array([sum((discount * decay) ** k * delta[t + k] for k in range(len(delta) - t)) for t in range(len(delta))])


# Token rewards


def test_token_rewards_by_hand():
    """beta 0.5: -0.5 (logp - ref) a token, the score on the last one; nothing after it."""
    logp = torch.tensor([[-1.0, -2.0, 9.0], [-1.0, -1.0, -1.0]])
    ref = torch.tensor([[-2.0, -2.5, 5.0], [-1.0, -3.0, -1.0]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    rewards = token_rewards(torch.tensor([3.0, -1.0]), logp, ref, mask, kl_coefficient=0.5)
    assert rewards.tolist() == [[-0.5, 2.75, 0.0], [0.0, -1.0, -1.0]]


def test_token_rewards_sum_to_the_score_less_the_price_of_the_kl():
    logp, ref, score = doubles(C, T, seed=1), doubles(C, T, seed=2), doubles(C, seed=3)
    total = token_rewards(score, logp, ref, MASK, 0.2).sum(-1)
    torch.testing.assert_close(total, score - 0.2 * torch.where(MASK, logp - ref, 0.0).sum(-1))


# Generalised advantages


def test_gae_by_hand():
    """gamma 1, lambda 0.5, rewards (0, 1), values (0.5, 0.8): delta (0.3, 0.2), A (0.4, 0.2), returns (0.9, 1)."""
    reward, value = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.8]])
    advantage, returns = gae(reward, value, torch.ones(1, 2, dtype=torch.bool), discount=1.0, decay=0.5)
    torch.testing.assert_close(advantage, torch.tensor([[0.4, 0.2]]))
    torch.testing.assert_close(returns, torch.tensor([[0.9, 1.0]]))


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_against_the_definition(discount: float, decay: float):
    """Values outside the mask are what a critic says of padding: anything."""
    reward = torch.where(MASK, doubles(C, T, seed=1), 0.0)
    value = torch.where(MASK, doubles(C, T, seed=2), 77.0)
    advantage, returns = gae(reward, value, MASK, discount=discount, decay=decay)
    for c, length in enumerate(LENGTHS):
        wanted = naive_gae(reward[c, :length].numpy(), value[c, :length].numpy(), discount, decay)
        np.testing.assert_allclose(advantage[c, :length].numpy(), wanted, rtol=0, atol=1e-12)
        np.testing.assert_allclose(returns[c, :length].numpy(), wanted + value[c, :length].numpy(), rtol=0, atol=1e-12)
    assert advantage[~MASK].abs().max() == returns[~MASK].abs().max() == 0


def test_with_lambda_1_returns_are_the_rewards_to_go():
    reward, value = torch.where(MASK, doubles(C, T, seed=1), 0.0), doubles(C, T, seed=2)
    _, returns = gae(reward, value, MASK, discount=1.0, decay=1.0)
    to_go = reward.flip(-1).cumsum(-1).flip(-1)
    torch.testing.assert_close(returns, torch.where(MASK, to_go, 0.0))


def test_a_critic_that_is_right_leaves_no_advantage():
    reward = torch.where(MASK, doubles(C, T, seed=1), 0.0)
    value = reward.flip(-1).cumsum(-1).flip(-1)
    advantage, _ = gae(reward, value, MASK, discount=1.0, decay=0.9)
    assert advantage.abs().max() < 1e-12


# Whitening


def test_whiten_by_hand():
    """(1, 3) and (5): mean 3, deviation sqrt(8/3)."""
    values = torch.tensor([[1.0, 3.0], [5.0, 99.0]])
    mask = torch.tensor([[True, True], [True, False]])
    edge = 2 / (8 / 3) ** 0.5
    torch.testing.assert_close(whiten(values, mask), torch.tensor([[-edge, 0.0], [edge, 0.0]]))


def test_whitened_values_have_mean_0_and_deviation_1_whatever_they_were():
    white = whiten(5 + 3 * doubles(C, T, seed=1), MASK)[MASK]
    assert float(white.mean()) == pytest.approx(0, abs=1e-12) and float(white.std(correction=0)) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("same", [0.0, 0.1, 1 / 3, 12345.678])
def test_equal_values_whiten_to_0(same: float):
    assert whiten(torch.full((C, T), same), MASK).abs().max() == 0
    assert whiten(torch.full((1, 1), same), torch.ones(1, 1, dtype=torch.bool)).item() == 0


# Groups


def test_group_advantages_by_hand():
    advantage, flat = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0]]))
    assert advantage.tolist() == [[1.0, -1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
    assert flat.tolist() == [False, True]


def test_group_advantages_against_numpy():
    reward = doubles(6, 4, seed=1)
    wanted = (reward.numpy() - reward.numpy().mean(1, keepdims=True)) / reward.numpy().std(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(reward)[0].numpy(), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("same", [0.1, 1 / 3, 0.7, 1e-30, 12345.678])
@pytest.mark.parametrize("samples", [3, 7, 8])
def test_a_group_without_spread_gets_exactly_0(same: float, samples: int):
    """Not a rounding error that the division blows up."""
    advantage, flat = group_advantages(torch.full((2, samples), same))
    assert advantage.abs().max() == 0 and flat.all()


def test_scale_and_offset_of_rewards_change_nothing():
    reward = doubles(6, 4, seed=1)
    torch.testing.assert_close(group_advantages(1000 * reward - 5)[0], group_advantages(reward)[0])
