"""The head in blocks of columns is the full softmax, in values and gradients, and never makes all logits, nor any of unscored tokens."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from data.packing import Group, pack
from models import vocabulary_head
from models.logprobs import head_weight, hidden_states, token_logps
from models.vocabulary_head import block_columns, head_logps

EXACT = {"rtol": 0.0, "atol": 1e-10}
ROWS, WIDTH, VOCABULARY = 11, 6, 13


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=[1, 4, 5, VOCABULARY])
def columns(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Columns of a block, of 13: the last block has 1, 1, 3 or all of them."""
    monkeypatch.setattr(vocabulary_head, "BLOCK_LOGITS", 0)
    monkeypatch.setattr(vocabulary_head, "BLOCK_COLUMNS", request.param)
    return request.param


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=noise, dtype=torch.float64, requires_grad=True)
    head = torch.randn(VOCABULARY, WIDTH, generator=noise, dtype=torch.float64, requires_grad=True)
    return hidden, head, torch.randint(VOCABULARY, (ROWS,), generator=noise)


def full(hidden: Tensor, head: Tensor, target: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """From the definition: z_target - log sum exp z, and log sum exp z - sum p z."""
    z = hidden @ head.T / temperature
    total = z.exp().sum(-1).log()
    p = z.exp() / z.exp().sum(-1, keepdim=True)
    return z[torch.arange(len(target)), target] - total, total - (p * z).sum(-1)


def test_by_hand():
    """Logits (0, log 2, log 5): probabilities 1/8, 2/8, 5/8; at temperature 1/2 their squares, 1/30, 4/30, 25/30."""
    hidden, head = torch.ones(1, 1), torch.tensor([[0.0], [math.log(2)], [math.log(5)]])
    logp, entropy = head_logps(hidden, head, torch.tensor([1]))
    assert float(logp) == pytest.approx(math.log(0.25))
    assert float(entropy) == pytest.approx(-sum(p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8)))
    assert float(head_logps(hidden, head, torch.tensor([2]), temperature=0.5)[0]) == pytest.approx(math.log(25 / 30))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.usefixtures("columns")
def test_values_and_gradients_are_those_of_the_full_softmax(inputs: tuple[Tensor, ...], temperature: float):
    weight = torch.linspace(-1, 1, ROWS, dtype=torch.float64)
    found = []
    for function in (head_logps, full):
        logp, entropy = function(*inputs, temperature)
        gradients = torch.autograd.grad((weight * logp).sum() + (weight.flip(0) * entropy).sum(), inputs[:2])
        found.append((logp, entropy, *gradients))
    for own, wanted in zip(*found, strict=True):
        torch.testing.assert_close(own, wanted, **EXACT)


def test_without_gradients_the_values_are_the_same(inputs: tuple[Tensor, ...]):
    with torch.no_grad():
        bare = head_logps(*inputs)
    assert [a.tolist() for a in bare] == [a.tolist() for a in head_logps(*inputs)]


def reference(hidden: Tensor, head: Tensor, target: Tensor, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Float64 NumPy, token by token, below the largest logit."""
    logps, entropies = [], []
    for row, given in zip(hidden.detach().double().numpy(), target.tolist(), strict=True):
        z = head.detach().double().numpy() @ row / temperature
        logp = z - z.max() - np.log(np.exp(z - z.max()).sum())
        logps.append(logp[given])
        entropies.append(-(np.exp(logp) * logp).sum())
    return np.array(logps), np.array(entropies)


@pytest.mark.usefixtures("columns")
def test_a_target_in_any_column(inputs: tuple[Tensor, ...]):
    """Every token of the vocabulary once, so that each block has targets and lacks some."""
    hidden, head = inputs[0][:1].expand(VOCABULARY, -1), inputs[1]
    logp, entropy = head_logps(hidden, head, torch.arange(VOCABULARY), 0.7)
    wanted = reference(hidden, head, torch.arange(VOCABULARY), 0.7)
    np.testing.assert_allclose(logp.detach(), wanted[0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(entropy.detach(), wanted[1], rtol=0, atol=1e-12)
    assert float(logp.detach().exp().sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("of", [0, 1])
@pytest.mark.usefixtures("columns")
def test_gradients_by_differences(inputs: tuple[Tensor, ...], rows: int, of: int):
    hidden, head, target = inputs
    assert torch.autograd.gradcheck(lambda h, w: head_logps(h, w, target[:rows], 0.7)[of], (hidden[:rows].detach().requires_grad_(), head))


@pytest.mark.usefixtures("columns")
def test_float32_is_close_to_float64(inputs: tuple[Tensor, ...]):
    hidden, head = (4 * x.detach().float() for x in inputs[:2])  # logits of up to some 100
    own = head_logps(hidden, head, inputs[2], 0.9)
    for values, wanted in zip(own, reference(hidden, head, inputs[2], 0.9), strict=True):
        assert values.dtype == torch.float32
        np.testing.assert_allclose(values, wanted, rtol=1e-6, atol=1e-5)


@pytest.mark.usefixtures("columns")
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_extreme_logits_stay_finite(sign: float):
    """Logits rise or fall from -1e4 to 1e4: all of the mass on one token, the other end at -2e4, and no entropy."""
    hidden, head = torch.full((2, 1), 100 * sign).requires_grad_(), torch.linspace(-100, 100, VOCABULARY)[:, None].requires_grad_()
    logp, entropy = head_logps(hidden, head, torch.tensor([0, VOCABULARY - 1]))
    assert sorted(logp.tolist()) == pytest.approx([-2e4, 0.0], rel=1e-6, abs=2e-3)
    assert entropy.tolist() == pytest.approx([0.0, 0.0], abs=2e-3)
    for gradient in torch.autograd.grad((logp + entropy).sum(), (hidden, head)):
        assert gradient.isfinite().all()


def test_equal_logits_of_1e4():
    """Of 13 equal logits each has the probability 1/13, however large they are."""
    for value in (1e4, -1e4):
        logp, entropy = head_logps(torch.full((1, 1), value), torch.ones(VOCABULARY, 1), torch.tensor([3]))
        assert float(entropy) == pytest.approx(math.log(13), abs=2e-3) and float(logp) == pytest.approx(-math.log(13), abs=2e-3)


def test_what_is_frozen_gets_no_gradient_and_no_work(inputs: tuple[Tensor, ...]):
    hidden, head, target = inputs
    wanted = torch.autograd.grad(head_logps(*inputs)[0].sum(), (hidden, head))
    for own, (h, w) in enumerate([(hidden, head.detach()), (hidden.detach(), head)]):
        logp, _ = head_logps(h, w, target)
        with Products(WIDTH) as backward:
            (gradient,) = torch.autograd.grad(logp.sum(), (h, w)[own])
        assert torch.equal(gradient, wanted[own])
        assert backward.products == 2, "logits again, and the one gradient"


def test_a_tied_head_adds_to_the_gradient_of_the_embeddings(policy64: nn.Module):
    """d/dt of the summed log-probabilities along a direction of the shared matrix, against a difference of values."""
    packed, weight = pack([Group([5, 6, 7], [[8, 9]])]), head_weight(policy64)
    assert weight is policy64.get_input_embeddings().weight
    token_logps(policy64, packed)[0].sum().backward()
    direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype)
    around = []
    with torch.no_grad():
        for step in (1e-5, -2e-5, 1e-5):  # there, to the other side, and back
            weight.add_(direction, alpha=step)
            around.append(float(token_logps(policy64, packed)[0].sum()))
    assert float((weight.grad * direction).sum()) == pytest.approx((around[0] - around[1]) / 2e-5, rel=1e-6)


def test_the_same_numbers_every_time(inputs: tuple[Tensor, ...]):
    hidden, head = (x.detach().bfloat16().requires_grad_() for x in inputs[:2])
    runs = [torch.autograd.grad(sum(head_logps(hidden, head, inputs[2])).sum(), (hidden, head)) for _ in range(2)]
    assert all(map(torch.equal, *runs)) and runs[0][0].dtype == torch.bfloat16


def test_columns_of_a_block():
    """2 Mi logits: 3,456 columns of 600 tokens (2,097,152 / 600 = 3,495), never fewer than 1,024, never more than there are."""
    assert [block_columns(tokens, 49_152) for tokens in (0, 1, 600, 2_000, 10**6)] == [49_152, 49_152, 3_456, 1_024, 1_024]
    assert block_columns(10, 259) == 259


def test_half_precision_is_raised_before_the_softmax():
    hidden, head = torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([[0.0], [8.0]], dtype=torch.bfloat16)
    logp, _ = head_logps(hidden, head, torch.tensor([1]))
    assert logp.dtype == torch.float32
    assert float(logp) == pytest.approx(-math.log1p(math.exp(-8)), rel=1e-4), "bfloat16 keeps two or three digits"


def test_nothing_scored_gives_nothing(policy64: nn.Module):
    logp, entropy = token_logps(policy64, pack([Group([1, 2], [[3, 4]], scored=[[False, False]])]))
    assert logp.shape == entropy.shape == (0,)
    logp.sum().backward()
    assert not head_weight(policy64).grad.any(), "nor memory that nobody has written"


class Products(TorchDispatchMode):
    """Counts matrix products, and notes the shapes of those over the hidden width: logits, where nothing else is computed inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.products, self.logits = width, 0, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.products += 1
            left, right = args[-2:]
            if left.shape[-1] == self.width and right.shape[-1] != self.width:
                self.logits.append(tuple(result.shape))
        return result


def test_logits_are_made_of_scored_tokens_only_a_block_at_a_time(policy64: nn.Module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(vocabulary_head, "BLOCK_LOGITS", 0)
    monkeypatch.setattr(vocabulary_head, "BLOCK_COLUMNS", 100)
    halves = Group([1] * 40, [[4] * 6], scored=[[True, False] * 3])
    packed = pack([halves, Group([2] * 30, [[3] * 11])])
    scored, vocabulary = len(packed.target_S), policy64.config.vocab_size
    hidden_SE = hidden_states(policy64.base_model, packed)[packed.source_S].detach().requires_grad_()
    blocks = [(scored, 100)] * (vocabulary // 100) + [(scored, vocabulary % 100)]
    with Products(hidden_SE.shape[1]) as forward:
        logp_S, _ = head_logps(hidden_SE, head_weight(policy64), packed.target_S)
    assert forward.logits == blocks and scored < len(packed.input_ids_N) / 4
    with Products(hidden_SE.shape[1]) as backward:
        torch.autograd.grad(logp_S.sum(), [hidden_SE, head_weight(policy64)])
    assert backward.logits == blocks, "made again in the backward pass, not kept"
    with torch.no_grad(), Products(hidden_SE.shape[1]) as whole:
        token_logps(policy64, packed)
    assert whole.logits[-len(blocks) :] == blocks, "of the scored tokens only"
