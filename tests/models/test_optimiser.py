"""AdamW as torch has it, with masters that keep what half precision would lose, and a state that comes back bit for bit."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from models.configs.optimisation import OptimConfig
from models.training.optimiser import Trainee, rate_share

CONFIG = OptimConfig(learning_rate=3e-2, weight_decay=0.1, beta2=0.95, max_grad_norm=0.5)


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.Linear(7, 3)).to(dtype)


def batch(step: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(step))


def learn(trainee: Trainee, steps: range, share: float = 1.0) -> list[float]:
    norms = []
    for step in steps:
        for half in batch(step).split(2):
            trainee.module(half.to(next(trainee.module.parameters()).dtype)).float().pow(2).sum().mul(1 + step).backward()
            trainee.accumulate()
        norms.append(trainee.grad_norm())
        trainee.step(norms[-1], share)
    return norms


def bits(trainee: Trainee) -> dict[str, bytes]:
    everything = {**trainee.state(), **{f"weight/{name}": p.detach() for name, p in trainee.named.items()}}
    return {name: t.contiguous().flatten().view(torch.uint8).numpy().tobytes() for name, t in everything.items()}


# Schedule


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.82, 0.64, 0.46, 0.28, 0.1]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.914058, 0.689058, 0.410942, 0.185942, 0.1]),
    ],
)
def test_schedule_by_hand(schedule, wanted):
    """Two of eight updates warm up, six fall from 1 to 0.1: linear by 0.18 each, cosine 0.1 + 0.45 (1 + cos(pi k / 5))."""
    config = OptimConfig(schedule=schedule, warmup_share=0.25, final_rate_share=0.1)
    assert [rate_share(update, 8, config) for update in range(8)] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("updates", [1, 2, 3, 100])
def test_every_update_learns_and_the_last_is_at_the_final_share(schedule, updates):
    config = OptimConfig(schedule=schedule, warmup_share=0.1, final_rate_share=0.2)
    shares = [rate_share(update, updates, config) for update in range(updates)]
    assert min(shares) > 0 and max(shares) <= 1
    if updates > 1:
        assert shares[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)


# The step


def test_float32_is_torchs_adamw_with_clipping():
    trainee, plain = Trainee(network(), CONFIG), network()
    matrices = [p for p in plain.parameters() if p.ndim > 1]
    vectors = [p for p in plain.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    adam = torch.optim.AdamW(groups, lr=CONFIG.learning_rate * 0.7, betas=(0.9, 0.95), eps=CONFIG.epsilon)
    norms = learn(trainee, range(6), share=0.7)
    for step in range(6):
        adam.zero_grad()
        plain(batch(step)).pow(2).sum().mul(1 + step).backward()
        norm = nn.utils.clip_grad_norm_(plain.parameters(), CONFIG.max_grad_norm)
        assert norms[step] == pytest.approx(float(norm), rel=1e-5)
        adam.step()
    assert max(norms) > CONFIG.max_grad_norm, "clipping was at work"
    for own, wanted in zip(trainee.module.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-6)


def test_a_small_gradient_is_not_scaled_up():
    trainee = Trainee(nn.Linear(1, 1, bias=False), OptimConfig(learning_rate=1e-9, max_grad_norm=10.0))
    trainee.module(torch.ones(1, 1)).sum().backward()
    assert trainee.grad_norm() == 1.0
    seen: list[float] = []
    trainee.adam.register_step_pre_hook(lambda *_: seen.append(float(trainee.masters["weight"].grad)))
    trainee.step(1.0, 1.0)
    assert seen == [1.0]
    trainee.module(torch.ones(1, 1)).sum().mul(40).backward()
    trainee.step(trainee.grad_norm(), 1.0)
    assert seen[1] == pytest.approx(10.0)


def test_only_matrices_decay():
    trainee = Trainee(network(), CONFIG)
    before = {name: p.detach().clone() for name, p in trainee.named.items()}
    for p in trainee.named.values():
        p.grad = torch.zeros_like(p)
    trainee.step(0.0, 1.0)
    for name, p in trainee.named.items():
        factor = 1 - CONFIG.learning_rate * CONFIG.weight_decay if p.ndim > 1 else 1.0
        torch.testing.assert_close(p.detach(), before[name] * factor)


def test_frozen_parameters_stay():
    module = network()
    module[0].requires_grad_(False)
    frozen = module[0].weight.clone()
    trainee = Trainee(module, CONFIG)
    learn(trainee, range(2))
    assert torch.equal(module[0].weight, frozen) and not any(name.startswith("0.") for name in trainee.named)


# Half precision


def test_masters_gather_what_bfloat16_would_lose():
    """Each step is a quarter of what bfloat16 can tell near 1: the weights move all the same, by the sum."""
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        module.weight.fill_(1.0)
    step = 2**-8 / 4
    trainee = Trainee(module, OptimConfig(learning_rate=step, schedule="constant", epsilon=1e-12))
    seen = []
    for _ in range(16):
        module(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        trainee.accumulate()
        trainee.step(1.0, 1.0)
        seen.append(module.weight.item())
    assert seen[0] == 1.0, "one step is lost in rounding"
    assert trainee.masters["weight"].item() == pytest.approx(1 - 16 * step, abs=1e-6)
    assert seen[-1] == pytest.approx(1 - 16 * step, abs=2**-9)


def test_micro_batch_gradients_are_added_in_float32():
    """1 + 2^-9 is 1 in bfloat16."""
    module = nn.Linear(1, 1, bias=False).to(torch.bfloat16)
    trainee = Trainee(module, CONFIG)
    for x in (1.0, 2**-9, 2**-9):
        module(torch.full((1, 1), x, dtype=torch.bfloat16)).sum().backward()
        trainee.accumulate()
    assert trainee.grad_norm() == pytest.approx(1 + 2**-8, abs=1e-7)
    assert module.weight.grad is None


def test_half_precision_weights_are_the_rounded_masters():
    trainee = Trainee(network(torch.bfloat16), CONFIG)
    learn(trainee, range(3))
    for name, p in trainee.named.items():
        assert trainee.masters[name].dtype == torch.float32
        assert torch.equal(p, trainee.masters[name].bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_shows_in_the_norm_and_can_be_forgotten(dtype, bad):
    trainee = Trainee(network(dtype), CONFIG)
    before = bits(trainee)
    (trainee.module(batch(0).to(dtype)).sum() * bad).backward()
    trainee.accumulate()
    assert not torch.isfinite(torch.tensor(trainee.grad_norm()))
    trainee.discard()
    assert trainee.grad_norm() == 0.0 and bits(trainee) == before


# State


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_state_comes_back_bit_for_bit(dtype, tmp_path: Path):
    trainee = Trainee(network(dtype), CONFIG)
    learn(trainee, range(3))
    save_file({name: t.contiguous() for name, t in trainee.state().items()}, tmp_path / "state.safetensors")
    other = network(dtype)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.5)
    resumed = Trainee(other, CONFIG)
    resumed.load_state(load_file(tmp_path / "state.safetensors"))
    assert bits(resumed) == bits(trainee)
    assert learn(resumed, range(3, 6)) == learn(trainee, range(3, 6))
    assert bits(resumed) == bits(trainee)


def test_a_state_before_the_first_step_has_no_moments():
    trainee = Trainee(network(), CONFIG)
    assert all(name.startswith("master/") for name in trainee.state())
    resumed = Trainee(network(), CONFIG)
    resumed.load_state(trainee.state())
    learn(resumed, range(2))
    learn(trainee, range(2))
    assert bits(resumed) == bits(trainee)
