"""The chunked head is the full softmax, in values and gradients, and never makes logits of tokens that are not scored."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from data.packing import Group, pack
from models import logprobs
from models.logprobs import head_logps, token_logps

EXACT = {"rtol": 0.0, "atol": 1e-10}
ROWS, WIDTH, VOCABULARY = 11, 6, 13


@pytest.fixture(params=[1, 4, 11, 256])
def chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(logprobs, "HEAD_CHUNK_TOKENS", request.param)
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
@pytest.mark.usefixtures("chunk")
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


def test_half_precision_is_raised_before_the_softmax():
    hidden, head = torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([[0.0], [8.0]], dtype=torch.bfloat16)
    logp, _ = head_logps(hidden, head, torch.tensor([1]))
    assert logp.dtype == torch.float32
    assert float(logp) == pytest.approx(-math.log1p(math.exp(-8)), rel=1e-4), "bfloat16 keeps two or three digits"


def test_nothing_scored_gives_nothing(policy: nn.Module):
    logp, entropy = token_logps(policy, pack([Group([1, 2], [[3, 4]], scored=[[False, False]])]))
    assert logp.shape == entropy.shape == (0,)


class LogitRows(TorchDispatchMode):
    """Counts the rows of every result as wide as the vocabulary that matrix products make."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.rows = vocabulary, []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        wide = isinstance(result, Tensor) and result.ndim >= 2 and result.shape[-1] == self.vocabulary
        if wide and func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.rows.append(result.numel() // self.vocabulary)
        return result


def test_logits_are_made_of_scored_tokens_only_a_chunk_at_a_time(policy64: nn.Module, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(logprobs, "HEAD_CHUNK_TOKENS", 5)
    halves = Group([1] * 40, [[4] * 6], scored=[[True, False] * 3])
    packed = pack([halves, Group([2] * 30, [[3] * 11])])
    scored = len(packed.target_S)
    with LogitRows(policy64.config.vocab_size) as forward:
        logp_S, _ = token_logps(policy64, packed)
    assert sum(forward.rows) == scored < len(packed.input_ids_N) / 4
    assert max(forward.rows) == 5
    with LogitRows(policy64.config.vocab_size) as backward:
        logp_S.sum().backward()
    assert sum(backward.rows) == scored and max(backward.rows) == 5, "made again in the backward pass, not kept"
