"""Norm and gated activation beside transformers' own: the same output bit for bit, the same gradients, less kept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from models.lean_layers import gated, keep_less, rms_norm
from models.loading import load_policy


def values(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).requires_grad_()


def test_a_norm_by_hand():
    """x = (3, 4): mean square 12.5, weight (1, 2): (3, 8) / sqrt(12.5)."""
    found = rms_norm(torch.tensor([[3.0, 4.0]], dtype=torch.float64), torch.tensor([1.0, 2.0], dtype=torch.float64), 0.0)
    assert found.tolist() == [pytest.approx([3 / 12.5**0.5, 8 / 12.5**0.5], abs=1e-12)]


def test_gradients_are_those_of_the_formula():
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (values(2, 3, 5), values(5, seed=1)))
    assert torch.autograd.gradcheck(gated, (values(4, 5), values(4, 5, seed=1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_beside_the_library_s(dtype: torch.dtype):
    norm = LlamaRMSNorm(64).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(values(64, seed=2))
    x, other = values(7, 64, dtype=dtype), values(7, 64, dtype=dtype)
    expected, found = norm(x), rms_norm(other, norm.weight, norm.variance_epsilon)
    assert torch.equal(expected, found)
    grad = values(7, 64, dtype=dtype, seed=3).detach()
    weights = [torch.autograd.grad(y, [z, norm.weight], grad) for y, z in ((expected, x), (found, other))]
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for a, b in zip(*weights, strict=True):
        assert torch.allclose(a, b, rtol=tolerance, atol=tolerance)


def kept_bytes(run: Callable[[], Tensor]) -> int:
    """Bytes of different tensors that autograd keeps for a backward pass."""
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = run()
    assert output.requires_grad
    return sum(found.values())


def test_a_model_computes_the_same_and_keeps_less(base: Path):
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    lean = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).eval()
    keep_less(lean)
    ids = torch.arange(1, 65)[None]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, lean(ids).logits)
    before, after = (kept_bytes(lambda model=model: model.base_model(ids).last_hidden_state) for model in (plain, lean))
    assert after < 0.8 * before


def test_every_policy_is_loaded_so(base: Path):
    policy = load_policy(base, trainable=True)
    names = {type(module).__name__: vars(module).get("forward") for module in policy.modules()}
    assert names["LlamaRMSNorm"] is not None and names["LlamaMLP"] is not None
