"""Every loss on the value derived by hand, against an independent float64 reference, by gradient, and cut into micro-batches."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.losses.kl import k3
from models.losses.policy_gradient import clipped_surrogate, value_loss
from models.losses.reward_model import bradley_terry_loss
from models.losses.sft import sft_loss
from models.losses.sums import masked, mean_of, merge

P, C, T = 7, 5, 6


def doubles(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prefix_mask(lengths: list[int], width: int = T) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths)[:, None]


MASK = prefix_mask([6, 1, 3, 5, 2])


def log_sigmoid(x: Any) -> Any:
    return -np.log1p(np.exp(-x))


def is_differentiable(function: Callable[..., Tensor], *inputs: Tensor) -> bool:
    return torch.autograd.gradcheck(function, [x.detach().clone().requires_grad_() for x in inputs])


def value(sums: dict, name: str) -> float:
    return merge([sums])[name]


# Supervised fine-tuning


@pytest.mark.parametrize(("normaliser", "wanted"), [("token_mean", 2.0), ("sequence_mean", 2.0), ("sum", 6.0)])
def test_sft_by_hand(normaliser, wanted):
    """Token log-probs (-1, -3) and (-2,): 6/3, (2 + 2)/2, 6."""
    logp_S = torch.tensor([-1.0, -3.0, -2.0])
    loss, sums = sft_loss(logp_S, torch.tensor([0, 0, 1]), torch.tensor([2, 1]), normaliser, tokens=3, sequences=2)
    assert (float(loss), value(sums, "train/loss")) == (wanted, 2.0)


SFT_TOKENS = (doubles(9), torch.tensor([0, 0, 0, 0, 1, 2, 2, 2, 2]), torch.tensor([4, 1, 4]))


@pytest.mark.parametrize("normaliser", ["token_mean", "sequence_mean", "sum"])
def test_sft_against_numpy_and_by_gradient(normaliser):
    logp_S, completion_S, length_C = SFT_TOKENS
    rows = np.split(logp_S.numpy(), [4, 5])
    wanted = {
        "token_mean": -np.concatenate(rows).sum() / 20,
        "sequence_mean": -sum(row.mean() for row in rows) / 8,
        "sum": -sum(row.sum() for row in rows),
    }
    loss, _ = sft_loss(logp_S, completion_S, length_C, normaliser, tokens=20, sequences=8)
    assert float(loss) == pytest.approx(wanted[normaliser], abs=1e-12)
    assert is_differentiable(lambda x: sft_loss(x, completion_S, length_C, normaliser, 20, 8)[0], logp_S)


@pytest.mark.parametrize("normaliser", ["token_mean", "sequence_mean", "sum"])
def test_sft_in_micro_batches(normaliser):
    logp_S, completion_S, length_C = SFT_TOKENS
    whole, sums = sft_loss(logp_S, completion_S, length_C, normaliser, tokens=9, sequences=3)
    cut = [
        sft_loss(logp_S[:5], completion_S[:5], length_C[:2], normaliser, tokens=9, sequences=3),
        sft_loss(logp_S[5:], completion_S[5:] - 2, length_C[2:], normaliser, tokens=9, sequences=3),
    ]
    assert float(sum(loss for loss, _ in cut)) == pytest.approx(float(whole), abs=1e-12)
    assert merge(part for _, part in cut) == pytest.approx(merge([sums]))


# Reward model


def test_bradley_terry_by_hand():
    """r = (1, 0): log(1 + e^-1) = 0.313262; with margin 1 the gap is 0: log 2."""
    one, zero = torch.ones(1), torch.zeros(1)
    loss, sums = bradley_terry_loss(one, zero, zero, pairs=1)
    assert float(loss) == pytest.approx(0.313262, abs=1e-6)
    assert (value(sums, "train/accuracy"), value(sums, "reward_model/margin")) == (1.0, 1.0)
    assert float(bradley_terry_loss(one, zero, one, pairs=1)[0]) == pytest.approx(math.log(2))


def test_bradley_terry_against_numpy_and_by_gradient():
    chosen, rejected, margin = doubles(P, seed=1), doubles(P, seed=2), doubles(P, seed=3).abs()
    loss, sums = bradley_terry_loss(chosen, rejected, margin, pairs=12)
    gap = (chosen - rejected - margin).numpy()
    assert float(loss) == pytest.approx(-log_sigmoid(gap).sum() / 12, abs=1e-12)
    assert value(sums, "train/accuracy") == pytest.approx(float((chosen > rejected).double().mean()))
    assert is_differentiable(lambda a, b: bradley_terry_loss(a, b, margin, 12)[0], chosen, rejected)


def test_bradley_terry_sees_differences_only():
    chosen, rejected, margin = doubles(P, seed=1), doubles(P, seed=2), torch.zeros(P)
    shifted = bradley_terry_loss(chosen + 37.0, rejected + 37.0, margin, P)[0]
    torch.testing.assert_close(shifted, bradley_terry_loss(chosen, rejected, margin, P)[0], rtol=0, atol=1e-12)


def test_a_hopeless_pair_costs_a_finite_loss():
    loss, _ = bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0]), torch.zeros(1), 1)
    assert float(loss) == 1000.0


@pytest.mark.parametrize("cut", [1, 3])
def test_bradley_terry_in_micro_batches(cut):
    columns = [doubles(P, seed=s) for s in range(3)]
    loss = lambda rows: bradley_terry_loss(*(x[rows] for x in columns), pairs=P)  # noqa: E731
    whole, sums = loss(slice(None))
    parts = [loss(slice(0, cut)), loss(slice(cut, None))]
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(whole), abs=1e-12)
    assert merge(part for _, part in parts) == pytest.approx(merge([sums]), abs=1e-6), "metrics are float32"


# Policy gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "wanted", "slope"),
    [
        (1.5, 2.0, -2.4, 0.0),  # the clip binds: no more to earn
        (1.5, -1.0, 1.5, 1.5),  # it would raise the objective: it does not bind
        (0.5, 2.0, -1.0, -1.0),
        (0.5, -1.0, 0.8, 0.0),
        (1.1, 2.0, -2.2, -2.2),
    ],
)
def test_clipped_surrogate_by_hand(ratio, advantage, wanted, slope):
    """-min(rho A, clip(rho) A) with eps 0.2, and its slope in logp, which is -rho A where the clip does not bind and 0 where it does."""
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    loss, sums = clipped_surrogate(logp, zero, zero + advantage, torch.ones(1, 1, dtype=torch.bool), 0.2)
    loss.sum().backward()
    assert (float(loss.detach()), float(logp.grad)) == (pytest.approx(wanted), pytest.approx(slope))
    assert value(sums, "train/clip_fraction") == (slope == 0)
    assert value(sums, "train/ratio") == pytest.approx(ratio)
    assert value(sums, "train/kl_old_nats") == pytest.approx(1 / ratio + math.log(ratio) - 1)


def test_clipped_surrogate_against_numpy_and_by_gradient():
    logp, old, advantage = doubles(C, T, seed=1, scale=0.3), doubles(C, T, seed=2, scale=0.3), doubles(C, T, seed=3)
    loss, sums = clipped_surrogate(logp, old, advantage, MASK, 0.2)
    rho, a, mask = np.exp((logp - old).numpy()), advantage.numpy(), MASK.numpy()
    wanted = -np.minimum(rho * a, np.clip(rho, 0.8, 1.2) * a)
    np.testing.assert_allclose(loss.numpy(), np.where(mask, wanted, 0), rtol=0, atol=1e-12)
    bound = ((a > 0) & (rho > 1.2)) | ((a < 0) & (rho < 0.8))
    assert value(sums, "train/clip_fraction") == pytest.approx(bound[mask].mean(), rel=1e-6) and 0 < bound[mask].mean() < 1
    assert is_differentiable(lambda x: clipped_surrogate(x, old, advantage, MASK, 0.2)[0], logp)


def test_before_the_first_step_the_gradient_is_that_of_reinforce():
    logp, advantage = doubles(C, T, seed=1), doubles(C, T, seed=3)
    logp.requires_grad_()
    clipped_surrogate(logp, logp.detach(), advantage, MASK, 0.2)[0].sum().backward()
    torch.testing.assert_close(logp.grad, torch.where(MASK, -advantage, 0.0))


@pytest.mark.parametrize("junk", [math.nan, math.inf, 1e30])
def test_what_is_outside_the_mask_reaches_nothing(junk):
    logp, old, advantage = (doubles(C, T, seed=s, scale=0.2) for s in range(3))
    spoiled = [torch.where(MASK, x, junk).requires_grad_() for x in (logp, old, advantage)]
    for clean_loss, spoiled_loss in (
        (clipped_surrogate(logp, old, advantage, MASK, 0.2), clipped_surrogate(*spoiled, MASK, 0.2)),
        (value_loss(logp, old, advantage, MASK, 0.2), value_loss(*spoiled, MASK, 0.2)),
    ):
        torch.testing.assert_close(spoiled_loss[0], clean_loss[0])
        assert merge([spoiled_loss[1]]) == merge([clean_loss[1]])
        assert torch.autograd.grad(spoiled_loss[0].sum(), spoiled[0])[0][MASK].isfinite().all()
    surrogate = clipped_surrogate(*spoiled, MASK, 0.2)[0].sum()
    assert torch.autograd.grad(surrogate, spoiled[0])[0][~MASK].abs().max() == 0


def test_k3_by_hand():
    """log 0.5 against log 0.25: 0.5 - log 0.5 - 1 = 0.193147."""
    assert float(k3(torch.tensor(0.5).log(), torch.tensor(0.25).log())) == pytest.approx(0.193147, abs=1e-6)


def test_k3_is_never_negative_unbiased_and_zero_at_equality():
    p = doubles(9, seed=1).softmax(0)
    q = doubles(9, seed=2).softmax(0)
    estimate = k3(p.log(), q.log())
    assert (estimate >= 0).all()
    assert float((p * estimate).sum()) == pytest.approx(float((p * (p.log() - q.log())).sum()), abs=1e-12), "E_p of k3 is KL(p || q)"
    assert float(k3(p.log(), p.log()).abs().max()) == 0.0
    assert is_differentiable(lambda x: k3(x, q.log()), p.log())


@pytest.mark.parametrize(
    ("now", "old", "goal", "wanted", "slope"),
    [
        (1.0, 0.0, 0.5, 0.125, 0.5),  # 1/2 max(0.25, 0.09)
        (0.1, 0.0, 0.5, 0.08, -0.4),  # inside the clip: 1/2 0.16
        (1.0, 0.0, 2.0, 1.62, 0.0),  # clipped to 0.2: 1/2 1.8^2, and nothing to gain by going on
    ],
)
def test_value_loss_by_hand(now, old, goal, wanted, slope):
    v = torch.tensor([[now]], dtype=torch.float64, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.float64)
    loss, _ = value_loss(v, old * one, goal * one, one.bool(), 0.2)
    loss.sum().backward()
    assert (float(loss.detach()), float(v.grad)) == (pytest.approx(wanted), pytest.approx(slope))


def test_value_loss_against_numpy_and_by_gradient():
    now, old, goal = (doubles(C, T, seed=s) for s in range(3))
    loss, sums = value_loss(now, old, goal, MASK, 0.4)
    v, v0, g, mask = now.numpy(), old.numpy(), goal.numpy(), MASK.numpy()
    wanted = 0.5 * np.maximum((v - g) ** 2, (np.clip(v, v0 - 0.4, v0 + 0.4) - g) ** 2)
    np.testing.assert_allclose(loss.numpy(), np.where(mask, wanted, 0), rtol=0, atol=1e-12)
    assert value(sums, "ppo/value") == pytest.approx(v[mask].mean(), rel=1e-6)
    assert value(sums, "ppo/return") == pytest.approx(g[mask].mean(), rel=1e-6)
    assert is_differentiable(lambda x: value_loss(x, old, goal, MASK, 0.4)[0], now)


@pytest.mark.parametrize("loss", [clipped_surrogate, value_loss])
def test_policy_gradient_losses_in_micro_batches(loss):
    """Rows are cut apart, and a row padded to another length; sums over tokens stay what they were."""
    columns = [doubles(C, T, seed=s, scale=0.3) for s in range(3)]
    whole, sums = loss(*columns, MASK, 0.2)
    first = loss(*(x[:2] for x in columns), MASK[:2], 0.2)
    padded = [torch.nn.functional.pad(x[2:], (0, 3), value=9.0) for x in columns]
    second = loss(*padded, torch.nn.functional.pad(MASK[2:], (0, 3)), 0.2)
    assert float(first[0].sum() + second[0].sum()) == pytest.approx(float(whole.sum()), abs=1e-12)
    assert merge([first[1], second[1]]) == pytest.approx(merge([sums]), rel=1e-6)


# Metrics


def test_metrics_add_up_by_hand():
    parts = [{"a": mean_of(torch.tensor([1.0, 2.0]))}, {"a": mean_of(torch.tensor([6.0])), "b": (torch.tensor(0.0), 0.0)}]
    assert merge(parts) == {"a": 3.0}, "(1 + 2 + 6) / 3; what was never counted is left out"
    assert masked(torch.tensor([1.0, math.nan]), torch.tensor([True, False])) == (1.0, 1)
