"""Attention of many short groups with a backward pass of its own, for processors.

Up to a few hundred tokens a plain softmax of scores beats the fused kernels: they save memory that nobody lacks and compute scores twice.
What is kept for the backward pass is one number a score, in the type of the model; scale and mask are part of the product.

Axes: ``N`` packed tokens, ``M`` those of some groups, ``K`` groups of a bucket, ``L`` tokens of the longest of them, ``H`` query heads,
``J`` key-value heads, ``G`` query heads that share one of them (no head is repeated in memory), ``D`` head width, ``B`` = K x J,
``Q`` = G x L queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass(frozen=True)
class Bucket:
    """Groups of similar length, padded to the longest of them for the attention product only."""

    index_KL: Tensor  # packed position of each slot; of a padded slot, that of the group's first token
    real_M: Tensor  # slots that are not padded, counted through the bucket
    mask_KLL: Tensor  # True where a query (row) sees a key

    @cached_property  # every layer asks for it, forward and backward
    def token_M(self) -> Tensor:
        """Packed positions of the bucket's tokens, in the order of its slots."""
        return self.index_KL.flatten()[self.real_M]

    def bias(self, heads: int, shared: int, dtype: torch.dtype) -> Tensor:
        """0 where a query sees a key, minus infinity elsewhere: ``[B, Q, L]``."""
        groups, length = self.index_KL.shape
        mask_KJGLL = self.mask_KLL[:, None, None].expand(-1, shared, heads // shared, -1, -1)
        bias = torch.zeros(mask_KJGLL.shape, dtype=dtype, device=self.mask_KLL.device).masked_fill_(~mask_KJGLL, -torch.inf)
        return bias.view(groups * shared, -1, length)


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
        for bucket, bias_BQL in zip(buckets, biases, strict=True):
            q_BQD, k_BLD, v_BLD = (_slots(x, bucket, shared) for x in (q_NHD, k_NJD, v_NJD))
            p_BQL = torch.baddbmm(bias_BQL, q_BQD, k_BLD.transpose(1, 2), alpha=scaling).softmax(-1)
            outputs.append(_tokens(p_BQL @ v_BLD, bucket, shared))
            kept += [q_BQD, k_BLD, v_BLD, p_BQL]
        ctx.save_for_backward(*kept)
        ctx.buckets, ctx.scaling, ctx.shapes = buckets, scaling, (q_NHD.shape, k_NJD.shape)
        return torch.cat(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_MHD: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query_shape, key_shape = ctx.shapes
        grads = grad_MHD.new_zeros(query_shape), grad_MHD.new_zeros(key_shape), grad_MHD.new_zeros(key_shape)
        parts = grad_MHD.split([len(bucket.real_M) for bucket in ctx.buckets])
        for number, (bucket, part_MHD) in enumerate(zip(ctx.buckets, parts, strict=True)):
            q_BQD, k_BLD, v_BLD, p_BQL = ctx.saved_tensors[4 * number : 4 * number + 4]
            found = _gradients(q_BQD, k_BLD, v_BLD, p_BQL, _padded(part_MHD, bucket, key_shape[1]), ctx.scaling)
            for grad_NHD, x in zip(grads, found, strict=True):
                grad_NHD.index_copy_(0, bucket.token_M, _tokens(x, bucket, key_shape[1]))
        return *grads, None, None, None


def _gradients(
    q_BQD: Tensor, k_BLD: Tensor, v_BLD: Tensor, p_BQL: Tensor, grad_BQD: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor]:
    grad_p_BQL = grad_BQD @ v_BLD.transpose(1, 2)
    grad_s_BQL = torch.ops.aten._softmax_backward_data(grad_p_BQL, p_BQL, -1, p_BQL.dtype)
    grad_q_BQD = torch.baddbmm(q_BQD, grad_s_BQL, k_BLD, beta=0, alpha=scaling)
    grad_k_BLD = torch.baddbmm(k_BLD, grad_s_BQL.transpose(1, 2), q_BQD, beta=0, alpha=scaling)
    return grad_q_BQD, grad_k_BLD, p_BQL.transpose(1, 2) @ grad_BQD


def _slots(x_NHD: Tensor, bucket: Bucket, shared: int) -> Tensor:
    """The slots of a bucket, key-value head by head: ``[B, Q, D]`` (``[B, L, D]`` where ``x`` has as many heads as are shared)."""
    return _by_shared_head(x_NHD.index_select(0, bucket.index_KL.flatten()), bucket, shared)


def _padded(x_MHD: Tensor, bucket: Bucket, shared: int) -> Tensor:
    """Rows of real slots as ``[B, Q, D]``, zeros in the padded ones."""
    if len(x_MHD) == bucket.index_KL.numel():
        return _by_shared_head(x_MHD, bucket, shared)
    slots = x_MHD.new_zeros(bucket.index_KL.numel(), *x_MHD.shape[1:])
    return _by_shared_head(slots.index_copy_(0, bucket.real_M, x_MHD), bucket, shared)


def _by_shared_head(x_SHD: Tensor, bucket: Bucket, shared: int) -> Tensor:
    groups, length = bucket.index_KL.shape
    heads, width = x_SHD.shape[1:]
    x_KJGLD = x_SHD.view(groups, length, shared, heads // shared, width).permute(0, 2, 3, 1, 4)
    return x_KJGLD.reshape(groups * shared, -1, width)


def _tokens(x_BQD: Tensor, bucket: Bucket, shared: int) -> Tensor:
    """The real slots of ``[B, Q, D]`` as rows ``[M, H, D]``."""
    groups, length = bucket.index_KL.shape
    x_KJGLD = x_BQD.view(groups, shared, -1, length, x_BQD.shape[-1])
    x_SHD = x_KJGLD.permute(0, 3, 1, 2, 4).reshape(groups * length, -1, x_BQD.shape[-1])
    return x_SHD if len(bucket.real_M) == len(x_SHD) else x_SHD.index_select(0, bucket.real_M)
