"""Log-probabilities and entropies of a softmax as wide as the vocabulary, block of columns by block of columns.

The logits never exist at once, in neither pass: the forward pass keeps a running maximum and the sums below it, the backward pass makes the
logits again. All scored tokens meet a block together, so that its rows of the head's gradient are written once, not added up over chunks.

Exponentials are to base 2, several times faster on processors, and the temperature is part of their exponent.

Axes: ``S`` scored tokens, ``V`` vocabulary, ``E`` hidden width, ``L`` the columns of one block, ``1`` one column.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A block has this many logits, or this many columns where the tokens are many. 2 Mi in float32 are 8 MiB: they stay in a processor's cache.
BLOCK_LOGITS = 2 * 2**20
BLOCK_COLUMNS = 1024
LOG_2 = math.log(2)


def head_logps(hidden_SE: Tensor, head_VE: Tensor, target_S: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of every scored token, from its hidden state: ``[S]`` each, nats, both differentiable once.

    logp_S = z[target] - logsumexp(z), entropy_S = logsumexp(z) - sum softmax(z) z, with z = hidden @ head.T / temperature.
    float64 stays float64 (gradient checks); logits of every narrower type are raised to float32 first.
    """
    return _VocabularyHead.apply(hidden_SE, head_VE, target_S, temperature)  # pyright: ignore[reportReturnType]


class _VocabularyHead(torch.autograd.Function):
    """With x = z / log 2, top = max x, y = x - top, total = sum 2^y and moment = sum 2^y y:

    logp = log 2 y[target] - log total, entropy = log total - log 2 moment / total.
    """

    @staticmethod
    def forward(ctx: Any, hidden_SE: Tensor, head_VE: Tensor, target_S: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        scale = 1 / (temperature * LOG_2)
        total_S1 = hidden_SE.new_zeros(len(hidden_SE), 1, dtype=_wide(hidden_SE))
        moment_S1, given_S1, top_S1 = torch.zeros_like(total_S1), torch.zeros_like(total_S1), torch.full_like(total_S1, -1e30)
        spare = _memory(hidden_SE, head_VE, total_S1.dtype)
        for columns, logits_SL, _ in _blocks(hidden_SE, head_VE):
            column_S1, here_S1 = _places(target_S, columns)
            given_S1 = torch.where(here_S1, logits_SL.gather(1, column_S1), given_S1)
            before_S1, top_S1 = top_S1, torch.maximum(top_S1, scale * logits_SL.amax(1, keepdim=True))
            y_SL = torch.add(-top_S1, logits_SL, alpha=scale, out=logits_SL)
            power_SL = torch.exp2(y_SL, out=spare[: y_SL.numel()].view_as(y_SL))
            fall_S1 = before_S1 - top_S1  # what the sums so far lose by a higher top
            moment_S1 = fall_S1.exp2() * (moment_S1 + fall_S1 * total_S1) + y_SL.mul_(power_SL).sum(1, keepdim=True)
            total_S1 = fall_S1.exp2() * total_S1 + power_SL.sum(1, keepdim=True)
        entropy_S1 = total_S1.log() - LOG_2 * moment_S1 / total_S1
        logp_S1 = LOG_2 * torch.add(-top_S1, given_S1, alpha=scale) - total_S1.log()
        ctx.save_for_backward(hidden_SE, head_VE, target_S, top_S1, total_S1, entropy_S1)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return logp_S1[:, 0], entropy_S1[:, 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_SE, head_VE = ctx.saved_tensors[:2]
        grad_hidden_SE = torch.zeros_like(hidden_SE, dtype=_wide(hidden_SE)) if ctx.needs_input_grad[0] else None
        grad_head_VE = torch.empty_like(head_VE) if ctx.needs_input_grad[1] else None
        part_SE = torch.empty_like(hidden_SE)
        for columns, grad_SL in _logit_gradients(ctx.saved_tensors, ctx.temperature, *grads):
            if grad_head_VE is not None:
                torch.mm(grad_SL.T, hidden_SE, out=grad_head_VE[columns])
            if grad_hidden_SE is not None:
                grad_hidden_SE += torch.mm(grad_SL, head_VE[columns], out=part_SE)
        return None if grad_hidden_SE is None else grad_hidden_SE.to(hidden_SE.dtype), grad_head_VE, None, None


def _logit_gradients(
    saved: tuple[Tensor, ...], temperature: float, grad_logp_S: Tensor | None, grad_entropy_S: Tensor | None
) -> Iterator[tuple[slice, Tensor]]:
    """Gradients of the logits, block by block, in the type of the head.

    With p = softmax(z): d logp / d z_v = [v = target] - p_v, and d entropy / d z_v = -p_v (log p_v + entropy).
    """
    hidden_SE, head_VE, target_S, top_S1, total_S1, entropy_S1 = saved
    of_logp_S1 = torch.zeros_like(total_S1) if grad_logp_S is None else grad_logp_S[:, None] / temperature
    slope_S1, spare = None, None
    constant_S1 = -of_logp_S1 / total_S1
    if grad_entropy_S is not None:
        slope_S1 = -grad_entropy_S[:, None] / temperature / total_S1
        constant_S1 = constant_S1 + slope_S1 * (entropy_S1 - total_S1.log())
        spare = _memory(hidden_SE, head_VE, total_S1.dtype)
    for columns, logits_SL, narrow_SL in _blocks(hidden_SE, head_VE):
        y_SL = torch.add(-top_S1, logits_SL, alpha=1 / (temperature * LOG_2), out=logits_SL)
        if slope_S1 is None or spare is None:
            grad_SL = y_SL.exp2_().mul_(constant_S1)
        else:
            power_SL = torch.exp2(y_SL, out=spare[: y_SL.numel()].view_as(y_SL))
            grad_SL = y_SL.mul_(LOG_2 * slope_S1).add_(constant_S1).mul_(power_SL)
        column_S1, here_S1 = _places(target_S, columns)
        grad_SL.scatter_add_(1, column_S1, torch.where(here_S1, of_logp_S1, 0.0))
        yield columns, narrow_SL.copy_(grad_SL)


def _blocks(hidden_SE: Tensor, head_VE: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Columns, their logits in float32 or wider, and memory of the same shape in the head's own type: the next block takes both over."""
    narrow = _memory(hidden_SE, head_VE, hidden_SE.dtype)
    wide = narrow.to(_wide(hidden_SE))  # itself where that is its type
    width = block_columns(len(hidden_SE), len(head_VE))
    for begin in range(0, len(head_VE), width):
        columns = slice(begin, min(begin + width, len(head_VE)))
        shape = len(hidden_SE), columns.stop - begin
        narrow_SL, wide_SL = (memory[: math.prod(shape)].view(shape) for memory in (narrow, wide))
        torch.mm(hidden_SE, head_VE[columns].T, out=narrow_SL)
        yield columns, wide_SL.copy_(narrow_SL), narrow_SL


def block_columns(tokens: int, vocabulary: int) -> int:
    """Columns of a block, a multiple of 64 where they are not the whole vocabulary."""
    return min(vocabulary, max(BLOCK_COLUMNS, BLOCK_LOGITS // max(tokens, 1) // 64 * 64))


def _memory(hidden_SE: Tensor, head_VE: Tensor, dtype: torch.dtype) -> Tensor:
    # Taken once a pass: new memory for every block would cost more than what is computed in it.
    return hidden_SE.new_empty(len(hidden_SE) * block_columns(len(hidden_SE), len(head_VE)), dtype=dtype)


def _wide(hidden_SE: Tensor) -> torch.dtype:
    return torch.promote_types(hidden_SE.dtype, torch.float32)


def _places(target_S: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Column of each target in the block (the nearest where it is not there), and whether it is there."""
    place_S1 = (target_S - columns.start)[:, None]
    last = columns.stop - columns.start - 1
    return place_S1.clamp(0, last), (place_S1 >= 0) & (place_S1 <= last)
