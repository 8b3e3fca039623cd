"""Attention of a long group, a block of queries at a time, with a backward pass of its own, for processors.

A block multiplies only the keys that one of its queries sees: the prompt and the completions that the block is of. Scores are computed
again in the backward pass, so that no more than those of one block are ever there at once.

Axes: ``L`` tokens of a group, ``H`` query heads, ``J`` key-value heads, ``G`` query heads that share one of them, ``D`` head width,
``R`` = L x G rows of queries, ``Q`` those of a block, ``S`` keys of a block, the last ``M`` of which are the block itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_TOKENS = 256  # of 64 to 512, the fastest at 512, 1,024 and 2,048 tokens


@dataclass(frozen=True)
class Block:
    """Neighbouring tokens of a group as queries: all of the prompt, all of one completion, or several whole completions.

    They see the first ``prompt`` tokens and those from ``first`` on, of which the mask hides some of the block's own.
    """

    start: int
    end: int
    prompt: int
    first: int
    mask_LM: Tensor  # True where a query sees a key

    def bias(self, shared: int, dtype: torch.dtype) -> Tensor:
        """0 where a query sees a key, minus infinity elsewhere: ``[1, Q, M]``."""
        zeros = torch.zeros(self.mask_LM.shape, dtype=dtype)
        return zeros.masked_fill_(~self.mask_LM, -torch.inf).repeat_interleave(shared, 0)[None]

    def keys(self, x_JLD: Tensor) -> Tensor:
        """Rows that the block sees: ``[J, S, D]``."""
        if self.first <= self.prompt:
            return x_JLD[:, : self.end]
        return torch.cat([x_JLD[:, : self.prompt], x_JLD[:, self.first : self.end]], 1)

    def add(self, total_JLD: Tensor, part_JSD: Tensor) -> None:
        """Add to the rows that the block sees."""
        if self.first <= self.prompt:
            total_JLD[:, : self.end] += part_JSD
        else:
            total_JLD[:, : self.prompt] += part_JSD[:, : self.prompt]
            total_JLD[:, self.first : self.end] += part_JSD[:, self.prompt :]


def blocks(branch_L: Tensor) -> list[Block]:
    """The blocks of a group, whose tokens are of the prompt (0) or of a completion (1, 2, ...)."""
    edges = [0, *(branch_L.diff().nonzero()[:, 0] + 1).tolist(), len(branch_L)]
    spans = list(pairwise(edges))
    return [_block(branch_L, spans[0][1], first, start, end) for first, start, end in _cuts(spans)]


def _cuts(spans: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Where completions begin whose tokens a block sees, and where the block begins and ends."""
    gathered: list[tuple[int, int]] = []
    for number, (start, end) in enumerate(spans):
        if gathered and (number == 1 or end - gathered[0][0] > BLOCK_TOKENS):
            yield gathered[0][0], gathered[0][0], gathered[-1][1]
            gathered = []
        if end - start <= BLOCK_TOKENS:
            gathered.append((start, end))
        else:
            yield from ((start, cut, min(cut + BLOCK_TOKENS, end)) for cut in range(start, end, BLOCK_TOKENS))
    if gathered:
        yield gathered[0][0], gathered[0][0], gathered[-1][1]


def _block(branch_L: Tensor, prompt_tokens: int, first: int, start: int, end: int) -> Block:
    query_L1, key_M = torch.arange(start, end)[:, None], torch.arange(start, end)
    mask_LM = (query_L1 >= key_M) & (branch_L[query_L1] == branch_L[key_M])
    return Block(start, end, min(prompt_tokens, end), first, mask_LM)


def long_attention(q_LHD: Tensor, k_LJD: Tensor, v_LJD: Tensor, cut: Sequence[Block], biases: Sequence[Tensor], scaling: float) -> Tensor:
    """softmax(scaling q k^T + bias) v inside one group: ``[L, H, D]``.

    The softmax of half-precision scores is computed in float32 and rounded once.
    """
    return _LongAttention.apply(q_LHD, k_LJD, v_LJD, cut, biases, scaling)  # pyright: ignore[reportReturnType]


class _LongAttention(torch.autograd.Function):
    """With S = scaling Q K^T + bias, P = softmax(S) and dP = dO V^T:

    dV = P^T dO, dS = P (dP - rowsum(P dP)), dQ = scaling dS K, dK = scaling dS^T Q; dK and dV are summed over blocks in float32.
    """

    @staticmethod
    def forward(ctx: Any, q_LHD: Tensor, k_LJD: Tensor, v_LJD: Tensor, cut: Any, biases: Any, scaling: float) -> Tensor:
        shared = q_LHD.shape[1] // k_LJD.shape[1]
        q_JRD, k_JLD, v_JLD = _rows(q_LHD, shared), _rows(k_LJD, 1), _rows(v_LJD, 1)
        out_JRD = torch.empty_like(q_JRD)
        for block, bias_1QM in zip(cut, biases, strict=True):
            own = slice(block.start * shared, block.end * shared)
            out_JRD[:, own] = _probabilities(q_JRD[:, own], block.keys(k_JLD), bias_1QM, scaling) @ block.keys(v_JLD)
        ctx.save_for_backward(q_JRD, k_JLD, v_JLD)
        ctx.cut, ctx.biases, ctx.scaling, ctx.shared = cut, biases, scaling, shared
        return _tokens(out_JRD, shared)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_LHD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q_JRD, k_JLD, v_JLD = ctx.saved_tensors
        shared, grad_JRD = ctx.shared, _rows(grad_LHD, ctx.shared)
        exact = torch.float64 if grad_LHD.dtype == torch.float64 else torch.float32
        grad_q_JRD = torch.empty_like(q_JRD)
        grad_k_JLD, grad_v_JLD = (torch.zeros(k_JLD.shape, dtype=exact) for _ in range(2))
        for block, bias_1QM in zip(ctx.cut, ctx.biases, strict=True):
            own = slice(block.start * shared, block.end * shared)
            q_JQD, grad_JQD, k_JSD = q_JRD[:, own], grad_JRD[:, own], block.keys(k_JLD)
            p_JQS = _probabilities(q_JQD, k_JSD, bias_1QM, ctx.scaling)
            grad_p_JQS = grad_JQD @ block.keys(v_JLD).transpose(1, 2)
            grad_s_JQS = torch.ops.aten._softmax_backward_data(grad_p_JQS, p_JQS, -1, p_JQS.dtype)
            grad_q_JRD[:, own] = torch.baddbmm(q_JQD, grad_s_JQS, k_JSD, beta=0, alpha=ctx.scaling)
            block.add(grad_k_JLD, torch.baddbmm(k_JSD, grad_s_JQS.transpose(1, 2), q_JQD, beta=0, alpha=ctx.scaling))
            block.add(grad_v_JLD, p_JQS.transpose(1, 2) @ grad_JQD)
        own_type = grad_LHD.dtype
        return _tokens(grad_q_JRD, shared), _tokens(grad_k_JLD.to(own_type), 1), _tokens(grad_v_JLD.to(own_type), 1), None, None, None


def _probabilities(q_JQD: Tensor, k_JSD: Tensor, bias_1QM: Tensor, scaling: float) -> Tensor:
    scores_JQS = torch.baddbmm(q_JQD[:, :1, :1], q_JQD, k_JSD.transpose(1, 2), beta=0, alpha=scaling)
    scores_JQS[:, :, -bias_1QM.shape[2] :] += bias_1QM
    return scores_JQS.softmax(-1)


def _rows(x_LHD: Tensor, shared: int) -> Tensor:
    """Key-value head by head, the query heads that share one beside each other: ``[J, R, D]``."""
    length, heads, width = x_LHD.shape
    return x_LHD.view(length, heads // shared, shared, width).transpose(0, 1).reshape(heads // shared, -1, width)


def _tokens(x_JRD: Tensor, shared: int) -> Tensor:
    """The same token by token: ``[L, H, D]``."""
    heads, rows, width = x_JRD.shape
    return x_JRD.view(heads, rows // shared, shared, width).transpose(0, 1).reshape(rows // shared, -1, width)
