"""Norm and gated activation of Llama-shaped models with backward passes of their own, which keep less.

Between two matrix products autograd keeps what each small operation read: of a norm the input in float32, twice, of the feed-forward layer
SiLU's output beside its input. Here one tensor of each is kept, in the model's type, and the rest is computed again. The forward pass is
transformers' own, bit for bit.

Axes: ``N`` tokens, ``E`` hidden width, ``F`` width of the feed-forward layer.
"""

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def keep_less(model: nn.Module) -> None:
    """Give every root-mean-square norm and SiLU-gated feed-forward layer of a model the forward passes of this module.

    They are told by their parts; layers of another shape keep their own.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm") and hasattr(module, "variance_epsilon"):
            module.forward = MethodType(_norm_forward, module)
        elif _is_gated_by_silu(module):
            module.forward = MethodType(_feed_forward, module)


def _is_gated_by_silu(module: nn.Module) -> bool:
    activation = type(getattr(module, "act_fn", None)).__name__
    return activation in ("SiLU", "SiLUActivation") and all(hasattr(module, f"{part}_proj") for part in ("gate", "up", "down"))


def _norm_forward(module: Any, x: Tensor) -> Tensor:
    return rms_norm(x, module.weight, module.variance_epsilon)


def _feed_forward(module: Any, x: Tensor) -> Tensor:
    return module.down_proj(gated(module.gate_proj(x), module.up_proj(x)))


def rms_norm(x_NE: Tensor, weight_E: Tensor, epsilon: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + epsilon), normalised in at least float32 and rounded before the weight: ``[..., E]``.

    Source: Zhang and Sennrich 2019, equation 4.
    """
    return _RMSNorm.apply(x_NE, weight_E, epsilon)  # pyright: ignore[reportReturnType]


def gated(gate_NF: Tensor, up_NF: Tensor) -> Tensor:
    """silu(gate) * up: ``[..., F]``. Source: Shazeer 2020, equation 6."""
    return _Gated.apply(gate_NF, up_NF)  # pyright: ignore[reportReturnType]


class _RMSNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + epsilon), n = x r and g = dy weight: dx = r (g - n mean(g n)), dweight = sum dy n."""

    @staticmethod
    def forward(ctx: Any, x_NE: Tensor, weight_E: Tensor, epsilon: float) -> Tensor:
        wide_NE = x_NE.to(torch.promote_types(x_NE.dtype, torch.float32))
        scale_N1 = torch.rsqrt(wide_NE.pow(2).mean(-1, keepdim=True) + epsilon)
        ctx.save_for_backward(x_NE, weight_E, scale_N1)
        return weight_E * (wide_NE * scale_N1).to(x_NE.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NE: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x_NE, weight_E, scale_N1 = ctx.saved_tensors
        normed_NE = x_NE.to(scale_N1.dtype) * scale_N1
        grad_weight_E = (grad_NE * normed_NE.to(x_NE.dtype)).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight_E, None
        wide_grad_NE = (grad_NE * weight_E).to(scale_N1.dtype)
        share_N1 = (wide_grad_NE * normed_NE).mean(-1, keepdim=True)
        return wide_grad_NE.sub_(normed_NE.mul_(share_N1)).mul_(scale_N1).to(x_NE.dtype), grad_weight_E, None


class _Gated(torch.autograd.Function):
    """dup = dy silu(gate), dgate = dy up silu'(gate)."""

    @staticmethod
    def forward(ctx: Any, gate_NF: Tensor, up_NF: Tensor) -> Tensor:
        ctx.save_for_backward(gate_NF, up_NF)
        return F.silu(gate_NF) * up_NF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NF: Tensor) -> tuple[Tensor, Tensor]:
        gate_NF, up_NF = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad_NF * up_NF, gate_NF), F.silu(gate_NF).mul_(grad_NF)
