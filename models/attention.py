"""Attention over padding-free batches, for any transformers decoder; the sampler's is in models/kv_cache.py.

transformers lets a model name its attention function; ours is called ``posttrain`` and asks the *layout* that was passed to
``forward(layout=...)`` what attends to what. Without a layout it is plain ``sdpa``.

Axes: ``N`` packed tokens, ``M`` those of a bucket, ``K`` groups, ``L`` tokens of the longest group of a bucket, ``H`` query heads,
``J`` key-value heads, ``D`` head width.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from data.packing import Packed
from models.short_attention import Bucket, short_attention

NAME = "posttrain"
BUCKET_RATIO = 1.25  # groups whose lengths differ by less share one padded attention call
# Below this the backward pass of the fused CPU kernel costs more than the scores it avoids (20 tokens: 39 ms against 2 ms a layer).
SHORT_TOKENS = 256


class Layout(Protocol):
    """Says what each query of a forward pass attends to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Queries ``[B, H, T, D]`` and keys, values ``[B, J, T, D]`` to outputs ``[B, T, H, D]``."""
        ...


class PackedLayout:
    """Tree attention inside each group of a packed batch: prompt causal, completions see the prompt and themselves.

    Groups of similar length are padded to one bucket for the attention product only; every other layer sees ``N`` real tokens.
    With ``keep`` the keys and values of each layer are kept, for a sampler that continues from the prompts.
    """

    def __init__(self, packed: Packed, keep: bool = False):
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if keep else None
        buckets = [_bucket(packed, members) for members in _similar_lengths(packed.group_starts_K)]
        fused = packed.input_ids_N.is_cuda
        self.short = [] if fused else [b for b in buckets if b.index_KL.shape[1] <= SHORT_TOKENS]
        self.long = [b for b in buckets if fused or b.index_KL.shape[1] > SHORT_TOKENS]
        self.place_N = torch.cat([b.token_M for b in (*self.short, *self.long)]).argsort()
        self.biases: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        if self.kept is not None:
            self.kept[layer] = (key[0], value[0])
        q_NHD, k_NJD, v_NJD = (x[0].transpose(0, 1) for x in (query, key, value))
        if not self.biases:  # of all layers
            self.biases = [bucket.bias(query.shape[1], key.shape[1], query.dtype) for bucket in self.short]
        outputs = [short_attention(q_NHD, k_NJD, v_NJD, self.short, self.biases, scaling)] if self.short else []
        outputs += [_fused_attention(q_NHD, k_NJD, v_NJD, bucket, scaling) for bucket in self.long]
        return torch.cat(outputs).index_select(0, self.place_N)[None]


def _fused_attention(q_NHD: Tensor, k_NJD: Tensor, v_NJD: Tensor, bucket: Bucket, scaling: float) -> Tensor:
    """The same by the library's fused kernel: ``[M, H, D]``."""
    q, k, v = (x[bucket.index_KL].transpose(1, 2) for x in (q_NHD, k_NJD, v_NJD))
    mask_K1LL = bucket.mask_KLL[:, None]
    a = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_K1LL, scale=scaling, enable_gqa=q.shape[1] != k.shape[1])
    return a.transpose(1, 2).flatten(0, 1)[bucket.real_M]


def _similar_lengths(starts_K: Tensor) -> list[list[int]]:
    """Indices of groups, in lists whose longest is at most BUCKET_RATIO times the shortest."""
    lengths = starts_K.diff().tolist()
    buckets: list[list[int]] = []
    for k in sorted(range(len(lengths)), key=lengths.__getitem__):
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
    slot_L = torch.arange(int(length_K.max()), device=device)
    real_KL = slot_L < length_K[:, None]
    index_KL = torch.where(real_KL, start_K[:, None] + slot_L, start_K[:, None])
    branch_KL = packed.branch_N[index_KL]
    causal_LL = slot_L[:, None] >= slot_L
    related_KLL = (branch_KL[:, None, :] == 0) | (branch_KL[:, None, :] == branch_KL[:, :, None])
    # A padded query attends to slot 0, so that no row of the softmax is empty; its output is thrown away.
    mask_KLL = (causal_LL & related_KLL & real_KL[:, None, :]) | (slot_L == 0)
    return Bucket(index_KL, real_KL.flatten().nonzero()[:, 0], mask_KLL)


def _attention(module, query, key, value, attention_mask, scaling=None, layout: Layout | None = None, **kwargs):
    if layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    return layout.attend(module.layer_idx, query, key, value, scaling), None


AttentionInterface.register(NAME, _attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
