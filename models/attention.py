"""Attention over padding-free batches, for any transformers decoder; the sampler's is in models/kv_cache.py.

transformers lets a model name its attention function; ours is called ``posttrain`` and asks the *layout* that was passed to
``forward(layout=...)`` what attends to what. Without a layout it is plain ``sdpa``.

Axes: ``N`` packed tokens, ``M`` those of a bucket, ``K`` groups, ``L`` tokens of the longest group of a bucket, ``H`` query heads,
``J`` key-value heads, ``D`` head width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
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
CUTTING_SHARE = 0.7  # scores of prompt and completions apart, as a share of the whole group's, up to which cutting pays
PADDING_SHARE = 1.5
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
    real tokens. Where a group's completions would mostly be multiplied with each other, which they do not see, its prompt and its
    completions are in buckets of their own. Any other long group is taken alone, a block of queries at a time.
    With ``keep`` the keys and values of each layer are kept, for a sampler that continues from the prompts.
    """

    def __init__(self, packed: Packed, keep: bool = False):
        self.kept: dict[int, tuple[Tensor, Tensor]] | None = {} if keep else None
        lengths = dict(enumerate(packed.group_starts_K.diff().tolist()))
        fused = packed.input_ids_N.is_cuda
        trees = {} if fused else {k: tree for k, tree in _trees(packed).items() if tree.is_worth_cutting}
        long = [] if fused else [k for k, length in lengths.items() if length > SHORT_TOKENS and k not in trees]
        self.long = [_Long.of(packed, k) for k in long]
        whole = {k: lengths[k] for k in lengths.keys() - {*long, *trees}}
        buckets = [_bucket(packed, members) for members in _similar_lengths(whole)]
        buckets += [bucket for members in _similar_trees(trees) for bucket in _apart(packed, members)]
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
    mask_K1LL = bucket.mask_KLS[:, None]
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
    """Whole groups."""
    chosen = torch.tensor(members, device=packed.input_ids_N.device)
    start_K = packed.group_starts_K[chosen]
    index_KL, real_KL = _run(start_K, packed.group_starts_K[chosen + 1] - start_K, start_K)
    branch_KL = packed.branch_N[index_KL]
    related_KLL = (branch_KL[:, None, :] == 0) | (branch_KL[:, None, :] == branch_KL[:, :, None])
    return Bucket(index_KL, real_KL.flatten().nonzero()[:, 0], _causal(real_KL) & related_KLL | _first(real_KL))


def _apart(packed: Packed, trees: Sequence["_Tree"]) -> list[Bucket]:
    """Prompts, and the completions that continue them."""
    start_K, prompt_K = torch.tensor([tree.start for tree in trees]), torch.tensor([tree.prompt for tree in trees])
    index_KP, real_KP = _run(start_K, prompt_K, start_K)
    prompts = Bucket(index_KP, real_KP.flatten().nonzero()[:, 0], _causal(real_KP) | _first(real_KP))
    length_KC = torch.tensor([tree.completions for tree in trees])
    begin_KC = (start_K + prompt_K)[:, None] + length_KC.cumsum(1) - length_KC
    each = length_KC.shape[1]
    index_RL, real_RL = _run(begin_KC.flatten(), length_KC.flatten(), start_K.repeat_interleave(each))
    before_RLP = real_KP.repeat_interleave(each, 0)[:, None].expand(-1, index_RL.shape[1], -1)
    return [prompts, Bucket(index_RL, real_RL.flatten().nonzero()[:, 0], torch.cat([before_RLP, _causal(real_RL)], 2), prompts)]


def _run(begin_K: Tensor, length_K: Tensor, spare_K: Tensor) -> tuple[Tensor, Tensor]:
    """Packed position of each slot of some runs of tokens, and which slots are not padded: ``[K, L]`` each."""
    slot_L = torch.arange(_slots(int(length_K.max())), device=begin_K.device)
    real_KL = slot_L < length_K[:, None]
    return torch.where(real_KL, begin_K[:, None] + slot_L, spare_K[:, None]), real_KL


def _causal(real_KL: Tensor) -> Tensor:
    slot_L = torch.arange(real_KL.shape[1], device=real_KL.device)
    return (slot_L[:, None] >= slot_L) & real_KL[:, None, :]


def _first(real_KL: Tensor) -> Tensor:
    """The first slot as a key: a padded query attends to it, so that no row of the softmax is empty; its output is thrown away."""
    return torch.arange(real_KL.shape[1], device=real_KL.device) == 0


@dataclass(frozen=True)
class _Tree:
    """A group by its lengths."""

    start: int
    prompt: int
    completions: tuple[int, ...]

    @property
    def longest(self) -> int:
        return max(self.completions)

    def padded_for(self, other: "_Tree") -> "_Tree":
        """With a prompt and completions as long as the longest of both."""
        each = max(self.completions + other.completions)
        return _Tree(self.start, max(self.prompt, other.prompt), (each,) * len(self.completions))

    @property
    def is_worth_cutting(self) -> bool:
        """Whether its prompt and its completions are to be apart: short enough to keep their scores, and far fewer than of the whole."""
        if not self.completions or self.prompt + self.longest > SHORT_TOKENS:
            return False
        return scores_apart([self]) <= CUTTING_SHARE * (self.prompt + sum(self.completions)) ** 2


def scores_apart(trees: Sequence[_Tree]) -> int:
    """Scores of some groups in one pair of buckets, padding included.

    By hand, a prompt of 2 tokens with completions of 1 and 3: 2^2 + 2 x 3 x (2 + 3) = 34, of 36 in the whole.
    """
    prompt, longest, each = max(t.prompt for t in trees), max(t.longest for t in trees), len(trees[0].completions)
    return len(trees) * (prompt**2 + each * longest * (prompt + longest))


def _trees(packed: Packed) -> dict[int, _Tree]:
    starts = packed.group_starts_K.tolist()
    counts = [torch.bincount(packed.branch_N[a:b]).tolist() for a, b in pairwise(starts)]
    return {k: _Tree(start, count[0], tuple(count[1:])) for k, (start, count) in enumerate(zip(starts, counts, strict=False))}


def _similar_trees(trees: Mapping[int, _Tree]) -> list[list[_Tree]]:
    """Groups with as many completions, as long as their scores in one bucket are at most PADDING_SHARE of those of each alone."""
    found: list[list[_Tree]] = []
    widest, alone = _Tree(0, 0, ()), 0  # of the last bucket: what its groups are padded to, and their scores without that
    for tree in sorted(trees.values(), key=lambda t: (len(t.completions), scores_apart([t]), t.start)):
        own, wider = scores_apart([tree]), widest.padded_for(tree)
        alike = len(widest.completions) == len(tree.completions)
        if alike and (len(found[-1]) + 1) * scores_apart([wider]) <= PADDING_SHARE * (alone + own):
            found[-1].append(tree)
            widest, alone = wider, alone + own
        else:
            found.append([tree])
            widest, alone = tree, own
    return found


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
