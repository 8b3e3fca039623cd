"""The one-token step of Llama-shaped models with a third of the operations: what the sampler runs thousands of times.

A step of few rows is short matrix products between which every small operation costs as much as its threads take to wake. Projections of
the same input are joined into one product, rotary embedding and residual sums are done in place, and nothing is dispatched that a single
new token does not need. Other architectures, and models with adapters, take the general path in ``models.generation``.

Axes: ``R`` rows, ``E`` hidden width, ``H`` query heads, ``J`` key-value heads, ``D`` head width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.kv_cache import DecodeLayout
from models.notices import say_once

MODEL_TYPES = ("llama", "mistral", "qwen2")  # RMS norms before attention and SiLU-gated feed-forward, rotary positions over the whole head
TYPICAL_ROWS = 128  # a hint for the layout; 1 to 250 rows were measured to be served alike


class Joined:
    """Linear layers of one input as one matrix product. The weights are copies: make it anew after an update.

    On a processor half-precision weights are laid out as the kernel reads them, where a plain product does so at every call: 0.36 ms
    against 0.49 for 32 rows of [576, 3072], and the same numbers.
    """

    def __init__(self, layers: Sequence[nn.Linear]):
        """The layers, whose outputs follow one another."""
        weight = layers[0].weight.detach() if len(layers) == 1 else torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias if layer.bias is not None else weight.new_zeros(layer.out_features) for layer in layers]
        self.bias = torch.cat(biases) if any(layer.bias is not None for layer in layers) else None
        self.packed = packs(weight)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, TYPICAL_ROWS) if self.packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        if self.packed:
            return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return F.linear(x, self.weight, self.bias)


def packs(weight: Tensor) -> bool:
    """True where a weight can be laid out in advance: oneDNN on a processor, in half precision."""
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return True
    say_once("sampling lays out no weights in advance, about a fifth slower: this build of torch has no oneDNN; the wheels for x86 have it")
    return False


@dataclass(frozen=True)
class Layer:
    """A decoder layer."""

    attention_norm: nn.Module
    qkv: Joined
    out: Joined
    feed_forward_norm: nn.Module
    gate_up: Joined
    down: Joined
    scaling: float


class LeanDecoder:
    """Appends one token to each row of a cache."""

    def __init__(self, policy: PreTrainedModel):
        model: Any = policy.base_model
        self.embed, self.rotary, self.norm = model.embed_tokens, model.rotary_emb, model.norm
        self.layers = [_layer(layer) for layer in model.layers]
        head: Any = policy.get_output_embeddings()
        self.head = Joined([head])
        self.heads = policy.config.num_attention_heads
        self.shared = policy.config.num_key_value_heads

    def __call__(self, token_R: Tensor, layout: DecodeLayout) -> Tensor:
        """The hidden state ``[R, E]`` from which each row's next token is predicted."""
        x_RE = self.embed(token_R)
        cos_R1D, sin_R1D = (t.transpose(0, 1) for t in self.rotary(x_RE, layout.length_R[None]))
        half = cos_R1D.shape[-1] // 2
        sin_R1D = torch.cat([-sin_R1D[..., :half], sin_R1D[..., half:]], dim=-1)
        for number, layer in enumerate(self.layers):
            joined = layer.qkv(_normed(layer.attention_norm, x_RE)).view(len(x_RE), self.heads + 2 * self.shared, -1)
            turned = rotate(joined[:, : self.heads + self.shared], cos_R1D, sin_R1D)[:, :, None]
            query, key, value = turned[:, : self.heads], turned[:, self.heads :], joined[:, self.heads + self.shared :, None]
            seen = layout.attend(number, query, key, value, layer.scaling)
            x_RE = x_RE.add_(layer.out(seen.flatten(1)))
            gate, up = layer.gate_up(_normed(layer.feed_forward_norm, x_RE)).chunk(2, dim=-1)
            x_RE = x_RE.add_(layer.down(F.silu(gate).mul_(up)))
        layout.advance()
        return _normed(self.norm, x_RE)


    def logits(self, hidden_RE: Tensor) -> Tensor:
        """Of the next token of each row: ``[R, V]``."""
        return self.head(hidden_RE)


def unsupported(policy: PreTrainedModel) -> str:
    """Why a model cannot be stepped by ``LeanDecoder``; empty if it can."""
    if policy.config.model_type not in MODEL_TYPES:
        return f"its architecture {policy.config.model_type} is not among {', '.join(MODEL_TYPES)}"
    config: Any = policy.config
    if getattr(config, "hidden_act", "silu") != "silu" or getattr(config, "sliding_window", None):
        return "its activation or its sliding window is not plain"
    model: Any = policy.base_model
    first = model.layers[0]
    parts = (first.self_attn.q_proj, first.self_attn.v_proj, first.self_attn.o_proj, first.mlp.gate_proj, first.mlp.down_proj)
    parts = (*parts, policy.get_output_embeddings())
    return "" if all(type(part) is nn.Linear for part in parts) else "it carries adapters or quantised layers"


def _layer(layer: Any) -> Layer:
    attention, mlp = layer.self_attn, layer.mlp
    return Layer(
        layer.input_layernorm,
        Joined([attention.q_proj, attention.k_proj, attention.v_proj]),
        Joined([attention.o_proj]),
        layer.post_attention_layernorm,
        Joined([mlp.gate_proj, mlp.up_proj]),
        Joined([mlp.down_proj]),
        attention.scaling,
    )


def _normed(norm: Any, x_RE: Tensor) -> Tensor:
    """Root-mean-square norm, summed in at least float32, with fewer operations than the general one."""
    wide_RE = x_RE.to(torch.promote_types(x_RE.dtype, torch.float32), copy=True)
    scale_R1 = wide_RE.square().mean(-1, keepdim=True).add_(norm.variance_epsilon).rsqrt_()
    return wide_RE.mul_(scale_R1).to(x_RE.dtype).mul_(norm.weight)


def rotate(x_RHD: Tensor, cos_R1D: Tensor, sin_R1D: Tensor) -> Tensor:
    """Rotary position embedding: x cos + swap(x) sin, with swap exchanging the halves of ``D`` and the first half of ``sin`` negated.

    By hand, D = 2, a quarter turn (cos 0, sin (-1, 1)): (1, 2) becomes (-2, 1).

    Source: Su et al. 2021 (RoFormer), with the halves that transformers uses for Llama.
    """
    half = x_RHD.shape[-1] // 2
    turned = x_RHD * cos_R1D
    turned[..., :half].addcmul_(x_RHD[..., half:], sin_R1D[..., :half])
    turned[..., half:].addcmul_(x_RHD[..., :half], sin_R1D[..., half:])
    return turned
