"""A preference model with two arguments: P(y beats y' | x), antisymmetric by construction, which need not be transitive.

    s(y, y') = r(y) - r(y') + sum over planes k of (u_k(y) w_k(y') - w_k(y) u_k(y')),        P(y beats y' | x) = sigmoid(s(y, y'))

r, u_k and w_k are linear in the hidden state at a completion's end-of-turn token. Swapping the arguments negates every term exactly, so
P(y, y') = 1 - P(y', y). Without planes this is Bradley-Terry, whose preferences have an order; a plane holds rock, paper and scissors at
120 degrees from each other. Completions of a prompt are read once, whatever the number of comparisons among them.

Source: Munos et al. 2024 for the model of two arguments; Zhang et al. 2024 (general preference model) for the skew-symmetric form.

Axes: ``C`` completions, ``W`` = 1 + 2 planes numbers a completion, ``P`` pairs, ``G`` completions of a prompt.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.packing import Group, Packed, pack, split_by_tokens
from models.heads import save_head
from models.loading import copy_tokenizer, load_backbone, save_weights
from models.logprobs import hidden_states
from models.parallel import in_forward, spread
from models.seeds import derive_seed

HEAD_FILE = "preference_head.safetensors"
SHAPE_FILE = "preference.json"


class PreferenceModel(nn.Module):
    """Backbone and a linear head of 1 + 2 planes numbers in float32."""

    def __init__(self, backbone: PreTrainedModel, planes: int):
        super().__init__()
        self.backbone, self.planes = backbone, planes
        dtype = torch.promote_types(backbone.dtype, torch.float32)
        self.head = nn.Linear(backbone.config.hidden_size, 1 + 2 * planes, dtype=dtype, device=backbone.device)

    def init_head(self, seed: int) -> None:
        """Small random weights: a plane of zeros would have no gradient."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "preference head"))
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator) / (self.head.in_features + 1) ** 0.5)
            self.head.bias.zero_()

    def read(self, packed: Packed) -> Tensor:
        """What is known of each completion, read at its last token: ``[C, W]``, float32."""
        return in_forward(self, lambda: self.head(hidden_states(self.backbone, packed)[packed.last_C].to(self.head.weight.dtype)))

    @torch.no_grad()
    def embed(self, groups: Sequence[Group], max_tokens: int) -> Tensor:
        """``read`` of every completion of every group, in their order: ``[C, W]``."""
        device = self.head.weight.device
        return torch.cat(spread(self, split_by_tokens(groups, max_tokens), lambda part: self.read(pack(part).to(device))))

    def matrices(self, groups: Sequence[Group], max_tokens: int) -> list[Tensor]:
        """Of each group the probability that its i-th completion beats its j-th: ``[G, G]`` each, 1/2 on the diagonal."""
        parts = self.embed(groups, max_tokens).split([len(group.completions) for group in groups])
        return [advantage(own_GW[:, None], own_GW[None, :]).sigmoid() for own_GW in parts]


def advantage(first: Tensor, second: Tensor) -> Tensor:
    """s(y, y') of completions given by their numbers ``[..., W]``: the log-odds that the first beats the second.

    By hand: (r, u, w) = (1, 1, 0) against (0, 0, 2): 1 - 0 + (1 * 2 - 0 * 0) = 3; the other way round -3.
    """
    u, w = first[..., 1::2], first[..., 2::2]
    other_u, other_w = second[..., 1::2], second[..., 2::2]
    return (first[..., 0] - second[..., 0]) + (u * other_w - w * other_u).sum(-1)


class Preference:
    """``preference(prompts, first, second)``: the probability that each first completion beats the second, of the same prompt."""

    def __init__(self, model: PreferenceModel, max_tokens: int = 8192):
        self.model, self.max_tokens = model, max_tokens

    def __call__(self, prompts: Sequence[Sequence[int]], first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> Tensor:
        """P(first beats second | prompt) of each pair: ``[P]``, float32.

        Args:
            prompts: token ids, the generation prompt included.
            first, second: token ids of the completions, their end-of-turn token included: the head reads the last one.
        """
        groups = [Group(prompt, [y, other]) for prompt, y, other in zip(prompts, first, second, strict=True)]
        numbers_P2W = self.model.embed(groups, self.max_tokens).view(len(groups), 2, -1)
        return advantage(numbers_P2W[:, 0], numbers_P2W[:, 1]).sigmoid()


def new_preference_model(folder: Path, planes: int, seed: int, device: torch.device | str = "cpu") -> PreferenceModel:
    """A policy's backbone with an untrained head."""
    model = PreferenceModel(load_backbone(folder, device, trainable=True), planes)
    model.init_head(seed)
    return model


def save_preference_model(model: PreferenceModel, parent: Path, out: Path) -> None:
    """Backbone, head, and the tokenizer with its chat template."""
    save_weights(model.backbone, out)
    save_head(model.head, out / HEAD_FILE)
    (out / SHAPE_FILE).write_text(json.dumps({"planes": model.planes}), encoding="utf-8")
    copy_tokenizer(parent, out)


def load_preference_model(folder: Path, device: torch.device | str = "cpu") -> PreferenceModel:
    """A trained preference model, frozen.

    Raises:
        ValueError: the folder holds none.
    """
    if not (folder / HEAD_FILE).is_file():
        raise ValueError(f"{folder} has no {HEAD_FILE}: it is not a preference model. Give the artifact of the preference_model stage")
    shape = json.loads((folder / SHAPE_FILE).read_text(encoding="utf-8"))
    model = PreferenceModel(load_backbone(folder, device), shape["planes"])
    model.head.load_state_dict(load_file(folder / HEAD_FILE))
    return model.requires_grad_(False).to(device)


def load_preference(folder: Path, device: torch.device | str = "cpu", max_tokens: int = 8192) -> Preference:
    """The callable of a trained preference model, at most ``max_tokens`` tokens in a forward pass."""
    return Preference(load_preference_model(folder, device), max_tokens)
