"""Attention of many short runs of tokens with a backward pass of its own, for processors.

Up to a few hundred tokens a plain softmax of scores beats the fused kernels: they save memory that nobody lacks and compute scores twice.
What is kept for the backward pass is one number a score, in the type of the model; scale and mask are part of the product.

Axes: ``N`` packed tokens, ``M`` those of some runs, ``K`` runs of a bucket, ``L`` tokens of the longest of them, ``S`` keys that it sees,
``H`` query heads, ``J`` key-value heads, ``G`` query heads that share one of them (no head is repeated in memory), ``D`` head width,
``B`` = K x J, ``Q`` = G x L queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Bucket:
    """Runs of similar length, padded to the longest of them for the attention product only.

    They see themselves: whole groups, or their prompts alone. Or they are the completions of ``prompts``, as many of each: they see their
    prompt, whose slots come first among their keys, and themselves.
    """

    index_KL: Tensor  # packed position of each slot; of a padded slot, that of the group's first token
    real_M: Tensor  # slots that are not padded, counted through the bucket
    mask_KLS: Tensor  # True where a query (row) sees a key
    prompts: Bucket | None = None

    @cached_property  # every layer asks for it, forward and backward
    def token_M(self) -> Tensor:
        """Packed positions of the bucket's tokens, in the order of its slots."""
        return self.index_KL.flatten()[self.real_M]

    @cached_property
    def key_KS(self) -> Tensor:
        """Packed position of each key's slot."""
        if self.prompts is None:
            return self.index_KL
        return torch.cat([self.prompts.index_KL.repeat_interleave(self.each, 0), self.index_KL], 1)

    @property
    def each(self) -> int:
        """Completions of a prompt."""
        return 1 if self.prompts is None else len(self.index_KL) // len(self.prompts.index_KL)

    def bias(self, heads: int, shared: int, dtype: torch.dtype) -> Tensor:
        """0 where a query sees a key, minus infinity elsewhere: ``[B, Q, S]``."""
        mask_KJGLS = self.mask_KLS[:, None, None].expand(-1, shared, heads // shared, -1, -1)
        bias = torch.zeros(mask_KJGLS.shape, dtype=dtype, device=self.mask_KLS.device).masked_fill_(~mask_KJGLS, -torch.inf)
        return bias.view(len(self.mask_KLS) * shared, -1, self.mask_KLS.shape[2])

    def put_keys(self, grad_NJD: Tensor, x_BSD: Tensor) -> None:
        """Write the gradients of the bucket's keys, and add those of prompts to what is there: the prompts' own bucket goes before."""
        shared = grad_NJD.shape[1]
        if self.prompts is None:
            grad_NJD.index_copy_(0, self.token_M, self.tokens(x_BSD, shared))
            return
        slots = self.prompts.index_KL.shape[1]
        grad_NJD.index_copy_(0, self.token_M, self.tokens(x_BSD[:, slots:], shared))
        of_prompts_BPD = x_BSD.unflatten(0, (-1, self.each, shared))[..., :slots, :].sum(1).flatten(0, 1)
        before_MJD = grad_NJD.index_select(0, self.prompts.token_M)
        grad_NJD.index_copy_(0, self.prompts.token_M, before_MJD + self.prompts.tokens(of_prompts_BPD, shared))

    def padded(self, x_MHD: Tensor, shared: int) -> Tensor:
        """Rows of real slots as ``[B, Q, D]``, zeros in the padded ones."""
        if len(x_MHD) == self.index_KL.numel():
            return _by_shared_head(x_MHD, self.index_KL, shared)
        slots = x_MHD.new_zeros(self.index_KL.numel(), *x_MHD.shape[1:])
        return _by_shared_head(slots.index_copy_(0, self.real_M, x_MHD), self.index_KL, shared)

    def tokens(self, x_BQD: Tensor, shared: int) -> Tensor:
        """The real slots of ``[B, Q, D]`` as rows ``[M, H, D]``."""
        runs, length = self.index_KL.shape
        x_KJGLD = x_BQD.reshape(runs, shared, -1, length, x_BQD.shape[-1])
        x_SHD = x_KJGLD.permute(0, 3, 1, 2, 4).reshape(runs * length, -1, x_BQD.shape[-1])
        return x_SHD if len(self.real_M) == len(x_SHD) else x_SHD.index_select(0, self.real_M)


def short_attention(
    q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor, buckets: Sequence[Bucket], biases: Sequence[Tensor], scaling: float
) -> Tensor:
    """softmax(scaling q k^T + bias) v inside every group: ``[M, H, D]``, bucket after bucket, slot after slot.

    The softmax of half-precision scores is computed in float32 and rounded once.
    """
    return _ShortAttention.apply(q_NHD, k_NJD, v_NJD, buckets, biases, scaling)  # pyright: ignore[reportReturnType]


class _ShortAttention(torch.autograd.Function):
    """With S = scaling Q K^T + bias, P = softmax(S) and dP = dO V^T:

    dV = P^T dO, dS = P (dP - rowsum(P dP)), dQ = scaling dS K, dK = scaling dS^T Q.
    """

    @staticmethod
    def forward(ctx: Any, q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor, buckets: Any, biases: Any, scaling: float) -> Tensor:
        shared, kept, outputs = k_NJD.shape[1], [], []
        for bucket, bias_BQS in zip(buckets, biases, strict=True):
            q_BQD = _slots(q_NHD, bucket.index_KL, shared)
            k_BSD, v_BSD = (_slots(x, bucket.key_KS, shared) for x in (k_NJD, v_NJD))
            p_BQS = torch.baddbmm(bias_BQS, q_BQD, k_BSD.transpose(1, 2), alpha=scaling).softmax(-1)
            outputs.append(bucket.tokens(p_BQS @ v_BSD, shared))
            kept += [q_BQD, k_BSD, v_BSD, p_BQS]
        ctx.save_for_backward(*kept)
        ctx.buckets, ctx.scaling, ctx.shapes = buckets, scaling, (q_NHD.shape, k_NJD.shape)
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MHD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query_shape, key_shape = ctx.shapes
        grad_q_NHD, grad_k_NJD, grad_v_NJD = (grad_MHD.new_zeros(shape) for shape in (query_shape, key_shape, key_shape))
        parts = grad_MHD.split([len(bucket.real_M) for bucket in ctx.buckets])
        for number, (bucket, part_MHD) in enumerate(zip(ctx.buckets, parts, strict=True)):
            q_BQD, k_BSD, v_BSD, p_BQS = ctx.saved_tensors[4 * number : 4 * number + 4]
            grad_BQD = bucket.padded(part_MHD, key_shape[1])
            of_q_BQD, of_k_BSD, of_v_BSD = _gradients(q_BQD, k_BSD, v_BSD, p_BQS, grad_BQD, ctx.scaling)
            grad_q_NHD.index_copy_(0, bucket.token_M, bucket.tokens(of_q_BQD, key_shape[1]))
            bucket.put_keys(grad_k_NJD, of_k_BSD)
            bucket.put_keys(grad_v_NJD, of_v_BSD)
        return grad_q_NHD, grad_k_NJD, grad_v_NJD, None, None, None


def _gradients(
    q_BQD: Tensor, k_BSD: Tensor, v_BSD: Tensor, p_BQS: Tensor, grad_BQD: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_p_BQS = grad_BQD @ v_BSD.transpose(1, 2)
    grad_s_BQS = torch.ops.aten._softmax_backward_data(grad_p_BQS, p_BQS, -1, p_BQS.dtype)
    grad_q_BQD = torch.baddbmm(q_BQD, grad_s_BQS, k_BSD, beta=0, alpha=scaling)
    grad_k_BSD = torch.baddbmm(k_BSD, grad_s_BQS.transpose(1, 2), q_BQD, beta=0, alpha=scaling)
    return grad_q_BQD, grad_k_BSD, p_BQS.transpose(1, 2) @ grad_BQD


def _slots(x_NHD: Tensor, index_KL: Tensor, shared: int) -> Tensor:
    """Rows of slots, key-value head by head: ``[B, Q, D]`` (``[B, L, D]`` where ``x`` has as many heads as are shared)."""
    return _by_shared_head(x_NHD.index_select(0, index_KL.flatten()), index_KL, shared)


def _by_shared_head(x_SHD: Tensor, index_KL: Tensor, shared: int) -> Tensor:
    runs, length = index_KL.shape
    heads, width = x_SHD.shape[1:]
    x_KJGLD = x_SHD.view(runs, length, shared, heads // shared, width).permute(0, 2, 3, 1, 4)
    return x_KJGLD.reshape(runs * shared, -1, width)
