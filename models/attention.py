"""Attention over padding-free batches, for any transformers decoder; the sampler's is in models/kv_cache.py.

transformers lets a model name its attention function; ours is called ``posttrain`` and asks the *layout* that was passed to
``forward(layout=...)`` what attends to what. Without a layout it is plain ``sdpa``.

Axes: ``N`` packed tokens, ``M`` those of a bucket, ``K`` groups, ``L`` tokens of the longest group of a bucket, ``H`` query heads,
``J`` key-value heads, ``D`` head width.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data.packing import Packed
from models.long_attention import Block, blocks, long_attention
from models.short_attention import Bucket, short_attention

NAME = "posttrain"
BUCKET_RATIO = 1.25  # groups whose lengths differ by less share one padded attention call
# Rows of scores that begin at a multiple of 32 bytes took 10 to 35 % less time in products and softmax: a bucket gets as many slots where
# they are at most an eighth more.
SLOTS = 16
# Up to this a group's scores are few enough to be kept for the backward pass. The library's fused kernel is for GPUs: on a processor it
# took 2 to 3 times as long as blocks at 512 and at 2,048 tokens, and 20 times as long as kept scores at 20.
SHORT_TOKENS = 256


class Layout(Protocol):
    """Says what each query of a forward pass attends to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Queries ``[B, H, T, D]`` and keys, values ``[B, J, T, D]`` to outputs ``[B, T, H, D]``."""
        ...


class PackedLayout:
    """Tree attention inside each group of a packed batch: prompt causal, completions see the prompt and themselves.

    Short groups of similar length are padded to one bucket for the attention product only, on GPUs all groups; every other layer sees ``N``
    real tokens. A long group is taken alone, a block of queries at a time.
    With ``keep`` the keys and values of each layer are kept, for a sampler that continues from the prompts.
    """

    def __init__(self, packed: Packed, keep: bool = False):
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if keep else None
        lengths = dict(enumerate(packed.group_starts_K.diff().tolist()))
        fused = packed.input_ids_N.is_cuda
        long = [] if fused else [k for k, length in lengths.items() if length > SHORT_TOKENS]
        self.long = [_Long.of(packed, k) for k in long]
        buckets = [_bucket(packed, members) for members in _similar_lengths({k: lengths[k] for k in lengths.keys() - long})]
        self.short, self.fused = ([], buckets) if fused else (buckets, [])
        self.place_N = torch.cat([*(b.token_M for b in buckets), *(one.token_L for one in self.long)]).argsort()
        self.biases: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if self.kept is not None:
            self.kept[layer] = (key[0], value[0])
        q_NHD, k_NJD, v_NJD = (x[0].transpose(0, 1) for x in (query, key, value))
        if not self.biases:  # of all layers
            self.biases = [bucket.bias(query.shape[1], key.shape[1], query.dtype) for bucket in self.short]
        outputs = [short_attention(q_NHD, k_NJD, v_NJD, self.short, self.biases, scaling)] if self.short else []
        outputs += [_fused_attention(q_NHD, k_NJD, v_NJD, bucket, scaling) for bucket in self.fused]
        outputs += [one.attend(q_NHD, k_NJD, v_NJD, scaling) for one in self.long]
        return torch.cat(outputs).index_select(0, self.place_N)[None]


@dataclass
class _Long:
    """A long group, and the masks of its blocks, which are the same in all layers."""

    token_L: Tensor  # packed positions, one after the other
    cut: list[Block]
    biases: list[Tensor]

    @classmethod
    def of(cls, packed: Packed, k: int) -> "_Long":
        start, end = packed.group_starts_K[k : k + 2].tolist()
        return cls(torch.arange(start, end), blocks(packed.branch_N[start:end]), [])

    def attend(self, q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor, scaling: float) -> Tensor:
        if not self.biases:
            self.biases = [block.bias(q_NHD.shape[1] // k_NJD.shape[1], q_NHD.dtype) for block in self.cut]
        own = slice(int(self.token_L[0]), int(self.token_L[-1]) + 1)
        return long_attention(q_NHD[own], k_NJD[own], v_NJD[own], self.cut, self.biases, scaling)


def _fused_attention(q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor, bucket: Bucket, scaling: float) -> Tensor:
    """The same by the library's fused kernel: ``[M, H, D]``."""
    q, k, v = (x[bucket.index_KL].transpose(1, 2) for x in (q_NHD, k_NJD, v_NJD))
    mask_K1LL = bucket.mask_KLL[:, None]
    a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_K1LL, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    return a.transpose(1, 2).flatten(0, 1)[bucket.real_M]


def _similar_lengths(lengths: Mapping[int, int]) -> list[list[int]]:
    """Groups by their lengths, in lists whose longest is at most BUCKET_RATIO times the shortest."""
    buckets: list[list[int]] = []
    for k in sorted(lengths, key=lambda k: (lengths[k], k)):
        if buckets and lengths[k] <= BUCKET_RATIO * lengths[buckets[-1][0]]:
            buckets[-1].append(k)
        else:
            buckets.append([k])
    return buckets


def _bucket(packed: Packed, members: list[int]) -> Bucket:
    device = packed.input_ids_N.device
    chosen = torch.tensor(members, device=device)
    start_K = packed.group_starts_K[chosen]
    length_K = packed.group_starts_K[chosen + 1] - start_K
    slot_L = torch.arange(_slots(int(length_K.max())), device=device)
    real_KL = slot_L < length_K[:, None]
    index_KL = torch.where(real_KL, start_K[:, None] + slot_L, start_K[:, None])
    branch_KL = packed.branch_N[index_KL]
    causal_LL = slot_L[:, None] >= slot_L
    related_KLL = (branch_KL[:, None, :] == 0) | (branch_KL[:, None, :] == branch_KL[:, :, None])
    # A padded query attends to slot 0, so that no row of the softmax is empty; its output is thrown away.
    mask_KLL = (causal_LL & related_KLL & real_KL[:, None, :]) | (slot_L == 0)
    return Bucket(index_KL, real_KL.flatten().nonzero()[:, 0], mask_KLL)


def _slots(longest: int) -> int:
    even = -(-longest // SLOTS) * SLOTS
    return even if even <= 1.125 * longest else longest


def _attention(module, query, key, value, attention_mask, scaling=None, layout: Layout | None = None, **kwargs):
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
