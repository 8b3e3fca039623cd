"""DPO and its relatives: values by hand, an independent float64 reference, gradients, invariances, and what a configuration refuses."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.configs.dpo import DPOConfig, PairLossConfig
from models.losses.dpo import Side, divergence_reward, dpo_loss, log_odds
from models.losses.sums import merge

P = 7
KNOBS: dict[str, dict[str, Any]] = {
    "sigmoid": {"loss": "sigmoid", "beta": 0.3},
    "conservative": {"loss": "conservative", "beta": 0.3, "label_smoothing": 0.2},
    "robust": {"loss": "robust", "beta": 0.3, "label_smoothing": 0.2},
    "ipo": {"loss": "ipo", "beta": 0.3},
    "simpo": {"loss": "simpo", "beta": 2.0, "target_margin": 0.7},
    "orpo": {"loss": "orpo", "beta": 0.4},
    "sigmoid per token": {"loss": "sigmoid", "beta": 0.3, "length_normalised": True},
    "ipo per token": {"loss": "ipo", "beta": 0.3, "length_normalised": True},
    "forward_kl": {"beta": 0.3, "divergence": "forward_kl"},
    "js": {"beta": 0.3, "divergence": "js"},
    "alpha": {"beta": 0.3, "divergence": "alpha", "alpha": 0.7},
    "robust js": {"loss": "robust", "beta": 0.3, "label_smoothing": 0.2, "divergence": "js"},
}


def doubles(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LENGTHS = (torch.tensor([3, 1, 5, 2, 2, 7, 4]), torch.tensor([2, 6, 1, 1, 3, 3, 5]))


def random_pairs() -> list[Tensor]:
    """Log-probabilities of chosen and rejected, and of their references: all negative, the more so the longer."""
    noise = [0.3 * doubles(P, seed=s).abs() + 0.03 for s in range(4)]
    return [-x * LENGTHS[i % 2] for i, x in enumerate(noise)]


def sides(chosen: Tensor, rejected: Tensor, chosen_ref: Tensor, rejected_ref: Tensor, rows: Any = slice(None)) -> tuple[Side, Side]:
    return (
        Side(chosen[rows], chosen_ref[rows], LENGTHS[0][rows]),
        Side(rejected[rows], rejected_ref[rows], LENGTHS[1][rows]),
    )


def one(logp: float, ref_logp: float | None = None, length: int = 1) -> Side:
    ref = None if ref_logp is None else torch.tensor([ref_logp], dtype=torch.float64)
    return Side(torch.tensor([logp], dtype=torch.float64, requires_grad=True), ref, torch.tensor([length]))


def loss_of(chosen: Side, rejected: Side, **knobs: Any) -> float:
    return float(dpo_loss(chosen, rejected, PairLossConfig(**knobs), 1)[0].detach())


# By hand


def test_dpo_by_hand():
    """logp (-1, -2), ref (-1.5, -1.5), beta 0.1: z = 0.1, log(1 + e^-0.1) = 0.644397, slope -beta sigmoid(-z)."""
    chosen, rejected = one(-1.0, -1.5), one(-2.0, -1.5)
    loss, sums = dpo_loss(chosen, rejected, PairLossConfig(beta=0.1), 1)
    assert float(loss.detach()) == pytest.approx(0.644397, abs=1e-6)
    metrics = merge([sums])
    assert metrics["dpo/margin"] == pytest.approx(0.1) and metrics["train/accuracy"] == 1
    assert (metrics["dpo/chosen_reward"], metrics["dpo/rejected_reward"]) == (pytest.approx(0.05), pytest.approx(-0.05))
    assert (metrics["dpo/chosen_logp_nats"], metrics["dpo/rejected_logp_nats"]) == (-1.0, -2.0)
    loss.backward()
    weight = 0.1 / (1 + math.exp(0.1))
    assert (float(chosen.logp_P.grad), float(rejected.logp_P.grad)) == (pytest.approx(-weight), pytest.approx(weight))


@pytest.mark.parametrize(
    ("knobs", "chosen", "rejected", "wanted"),
    [
        # A gap of 10 nats and beta 0.1: z = 1.
        ({"beta": 0.1}, one(-1.0, -6.0), one(-9.0, -4.0), 0.313262),
        ({"beta": 0.1, "loss": "conservative", "label_smoothing": 0.1}, one(-1.0, -6.0), one(-9.0, -4.0), 0.413262),
        ({"beta": 0.1, "loss": "robust", "label_smoothing": 0.1}, one(-1.0, -6.0), one(-9.0, -4.0), 0.188262),
        ({"beta": 0.1, "loss": "ipo"}, one(-1.0, -1.5), one(-2.0, -1.5), 16.0),
        ({"beta": 0.1, "loss": "ipo", "length_normalised": True}, one(-1.0, -3.0, 2), one(-2.0, -2.0, 9), 16.0),
        ({"beta": 2.0, "loss": "simpo", "target_margin": 1.0}, one(-1.0), one(-4.0, length=2), 0.313262),
        ({"beta": 0.1, "loss": "orpo"}, one(math.log(0.5)), one(2 * math.log(0.25), length=2), 0.721915),
        ({"beta": 1.0, "length_normalised": True}, one(-1.0, -3.0, 2), one(-2.0, -2.0, 9), 0.313262),
    ],
)
def test_relatives_by_hand(knobs: dict[str, Any], chosen: Side, rejected: Side, wanted: float):
    assert loss_of(chosen, rejected, **knobs) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(
    ("knobs", "wanted"),
    [
        ({}, 0.693147),
        ({"divergence": "forward_kl"}, -0.5),
        ({"divergence": "js"}, -0.405465),
        ({"divergence": "alpha", "alpha": 0.5}, 0.585786),
    ],
)
def test_rewards_of_divergences_by_hand(knobs: dict[str, Any], wanted: float):
    """u = 2, beta 1."""
    assert float(divergence_reward(one(math.log(2), 0.0), PairLossConfig(beta=1.0, **knobs)).detach()) == pytest.approx(wanted, abs=1e-6)


# Against an independent reference


def reference(knobs: PairLossConfig, logp: list[np.ndarray], lengths: list[np.ndarray]) -> np.ndarray:
    """Each pair's loss, from probabilities instead of log-probabilities wherever the formula has them."""
    w, l, rw, rl = logp  # noqa: E741
    n, m = lengths
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    if knobs.loss == "simpo":
        return -np.log(sigmoid(knobs.beta * w / n - knobs.beta * l / m - knobs.target_margin))
    if knobs.loss == "orpo":
        p, q = np.exp(w) ** (1 / n), np.exp(l) ** (1 / m)
        return -np.log(p) - knobs.beta * np.log(sigmoid(np.log((p / (1 - p)) / (q / (1 - q)))))
    u, v = np.exp(w - rw), np.exp(l - rl)
    if knobs.length_normalised:
        u, v = u ** (1 / n), v ** (1 / m)
    slope = {
        "reverse_kl": lambda u: np.log(u) + 1,
        "forward_kl": lambda u: -1 / u,
        "js": lambda u: np.log(2 * u / (1 + u)),
        "alpha": lambda u: (1 - u**-knobs.alpha) / knobs.alpha,
    }[knobs.divergence]
    if knobs.loss == "ipo":
        return (np.log(u / v) - 0.5 / knobs.beta) ** 2
    z = knobs.beta * (slope(u) - slope(v))
    right, wrong, e = -np.log(sigmoid(z)), -np.log(sigmoid(-z)), knobs.label_smoothing
    if knobs.loss == "robust":
        return ((1 - e) * right - e * wrong) / (1 - 2 * e)
    return (1 - e) * right + e * wrong


@pytest.mark.parametrize("name", KNOBS)
def test_against_numpy_and_by_gradient(name: str):
    knobs = PairLossConfig(**KNOBS[name])
    columns = random_pairs()
    loss, sums = dpo_loss(*sides(*columns), knobs, pairs=11)
    wanted = reference(knobs, [x.numpy() for x in columns], [x.numpy() for x in LENGTHS])
    assert float(loss) == pytest.approx(wanted.sum() / 11, abs=1e-12)
    metrics = merge([sums])
    assert metrics["train/loss"] == pytest.approx(wanted.mean(), rel=1e-6)
    assert metrics["dpo/chosen_logp_nats"] == pytest.approx(float(columns[0].mean()), rel=1e-6)
    assert metrics["dpo/margin"] == pytest.approx(metrics["dpo/chosen_reward"] - metrics["dpo/rejected_reward"], rel=1e-5)
    assert 0 < metrics["train/accuracy"] < 1
    inputs = [x.clone().requires_grad_() for x in columns[:2]]
    assert torch.autograd.gradcheck(lambda a, b: dpo_loss(*sides(a, b, *columns[2:]), knobs, 11)[0], inputs)


@pytest.mark.parametrize("name", KNOBS)
def test_pairs_in_micro_batches_and_in_another_order(name: str):
    knobs = PairLossConfig(**KNOBS[name])
    columns = random_pairs()
    whole, sums = dpo_loss(*sides(*columns), knobs, P)
    parts = [dpo_loss(*sides(*columns, rows=rows), knobs, P) for rows in ([6, 1], [3, 0, 5, 2, 4])]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), abs=1e-12)
    assert merge(part for _, part in parts) == pytest.approx(merge([sums]), rel=1e-6)


# Properties


def test_at_the_reference_dpo_is_log_2():
    logp = doubles(P)
    side = Side(logp, logp, LENGTHS[0])
    for divergence in ("reverse_kl", "forward_kl", "js", "alpha"):
        loss, _ = dpo_loss(side, side, PairLossConfig(beta=5.0, divergence=divergence), P)
        assert float(loss) == pytest.approx(math.log(2))


def test_robust_loss_is_unbiased_under_flipped_labels():
    """(1 - e) L(w, l) + e L(l, w) is plain DPO's loss on the true label (Chowdhury 2024)."""
    w, l = sides(*random_pairs())  # noqa: E741
    knobs = PairLossConfig(loss="robust", label_smoothing=0.3)
    noisy = 0.7 * dpo_loss(w, l, knobs, P)[0] + 0.3 * dpo_loss(l, w, knobs, P)[0]
    assert float(noisy) == pytest.approx(float(dpo_loss(w, l, PairLossConfig(), P)[0]), abs=1e-12)


def slope_at(gap: float, **knobs: Any) -> float:
    """The gradient of the loss in the chosen log-probability, ``gap`` nats above the reference of which the rejected one is not."""
    chosen = one(gap, 0.0)
    dpo_loss(chosen, one(0.0, 0.0), PairLossConfig(**knobs), 1)[0].backward()
    assert chosen.logp_P.grad is not None
    return float(chosen.logp_P.grad)


def test_where_each_loss_stops_widening():
    """IPO at 1 / (2 beta), conservative DPO at log((1 - e) / e) / beta, DPO never."""
    assert slope_at(2.5, beta=0.2, loss="ipo") == pytest.approx(0, abs=1e-12)
    assert slope_at(2.4, beta=0.2, loss="ipo") < 0 < slope_at(2.6, beta=0.2, loss="ipo")
    noisy = {"beta": 0.5, "loss": "conservative", "label_smoothing": 0.1}
    assert slope_at(math.log(9) / 0.5, **noisy) == pytest.approx(0, abs=1e-12)
    assert slope_at(20.0, beta=0.5) < 0


def test_alpha_lies_between_the_two_directions_of_kl():
    side = one(0.7, 0.0)
    near = {a: float(divergence_reward(side, PairLossConfig(beta=1.0, divergence="alpha", alpha=a)).detach()) for a in (1e-6, 1 - 1e-6)}
    assert near[1e-6] == pytest.approx(0.7, abs=1e-5)
    assert near[1 - 1e-6] == pytest.approx(1 - math.exp(-0.7), abs=1e-5), "forward KL plus the constant that cancels"


@pytest.mark.parametrize("name", KNOBS)
@pytest.mark.parametrize("far", [-400.0, 400.0])
def test_a_pair_far_from_the_reference_keeps_finite_gradients(name: str, far: float):
    """A completion that the policy has all but unlearned must not poison the update."""
    chosen = Side(torch.tensor([-1e-9 if far > 0 else far], requires_grad=True), torch.tensor([-1.0 - far]), torch.tensor([2]))
    rejected = Side(torch.tensor([-500.0], requires_grad=True), torch.tensor([-1.0]), torch.tensor([2]))
    loss, sums = dpo_loss(chosen, rejected, PairLossConfig(**KNOBS[name]), 1)
    loss.backward()
    assert math.isfinite(float(loss.detach())) and all(math.isfinite(x) for x in merge([sums]).values())
    for side in (chosen, rejected):
        assert side.logp_P.grad is not None and math.isfinite(float(side.logp_P.grad**2))


def test_the_odds_of_a_certain_token_are_finite():
    assert 15 < float(log_odds(Side(torch.zeros(1), None, torch.ones(1)), PairLossConfig())) < 17


# Refusals


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"label_smoothing": 0.1}, "only conservative and robust read it"),
        ({"loss": "robust"}, "give the share of wrong labels"),
        ({"target_margin": 1.0}, "only simpo reads it"),
        ({"loss": "simpo", "length_normalised": True}, "it always is"),
        ({"loss": "orpo", "divergence": "js"}, "use reverse_kl"),
        ({"loss": "ipo", "divergence": "js"}, "use reverse_kl"),
        ({"divergence": "js", "length_normalised": True}, "use reverse_kl"),
        ({"alpha": 0.3}, "only divergence = alpha reads it"),
        ({"loss": "simpo", "reference_sync_every": 3}, "has no reference"),
        ({"reference_sync_share": 0.5}, "say after how many updates"),
    ],
)
def test_combinations_that_mean_nothing_are_refused(knobs: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        DPOConfig(**knobs)


@pytest.mark.parametrize("name", KNOBS)
def test_every_combination_tested_here_is_a_stage_configuration(name: str):
    config = DPOConfig(**KNOBS[name])
    assert DPOConfig.model_validate(config.model_dump(mode="json")) == config, "a worker gets it as JSON, defaults filled in"
