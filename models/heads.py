"""A transformer with one number a token instead of a vocabulary: reward models and value functions; or a reward for every next token.

Axes: ``C`` completions, ``S`` scored tokens, ``E`` hidden width, ``V`` vocabulary.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.packing import Group, Packed, pack, split_by_tokens
from models.loading import copy_generation_config, copy_tokenizer, load_backbone, save_weights
from models.logprobs import hidden_states
from models.lora import merge_adapters
from models.parallel import has_shards, in_forward, rank, spread, whole_state
from models.seeds import derive_seed

HEAD_FILE = "scalar_head.safetensors"
TOKEN_HEAD_FILE = "token_head.safetensors"
RULE_FILE = "reward.json"


@dataclass(frozen=True)
class RewardRule:
    """How to read a trained reward model: scores become (score - mean) / deviation. The number is read at the end-of-turn token.

    ``pairs``: the part of the preferences that it was trained on, train or test.
    """

    mean: float = 0.0
    deviation: float = 1.0
    trained_pairs: int = 0
    pairs: str = "train"


class HeadModel(nn.Module):
    """Backbone and a linear head in float32, with the rule for reading it."""

    file: str

    def __init__(self, backbone: PreTrainedModel, width: int, rule: RewardRule | None = None):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(
            backbone.config.hidden_size, width, dtype=torch.promote_types(backbone.dtype, torch.float32), device=backbone.device
        )
        self.rule = rule or RewardRule()

    def at_ends(self, packed: Packed) -> Tensor:
        """Raw score of each completion: ``[C]``."""
        raise AssertionError("a model must say where it scores a completion")

    def reward(self, packed: Packed) -> Tensor:
        """Normalised reward of each completion: ``[C]``."""
        return self.normalised(self.at_ends(packed))

    @torch.no_grad()
    def score(self, groups: Sequence[Group], max_tokens: int) -> Tensor:
        """Normalised reward of every completion of every group, in their order: ``[C]``."""
        device = self.head.weight.device
        return torch.cat(spread(self, split_by_tokens(groups, max_tokens), lambda part: self.reward(pack(part).to(device))))

    def normalised(self, score: Tensor) -> Tensor:
        """Scores under the rule."""
        return (score - self.rule.mean) / self.rule.deviation


class ScalarModel(HeadModel):
    """One number a token."""

    file = HEAD_FILE

    def __init__(self, backbone: PreTrainedModel, rule: RewardRule | None = None):
        super().__init__(backbone, 1, rule)

    def init_head(self, seed: int) -> None:
        """Small random weights: the first rewards are near zero and differ."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "scalar head"))
        with torch.no_grad():
            noise = torch.randn(self.head.weight.shape, generator=generator) / (self.head.in_features + 1) ** 0.5
            self.head.weight.copy_(noise)
            self.head.bias.zero_()

    def at_ends(self, packed: Packed) -> Tensor:
        """Raw score of each completion, read at its last token: ``[C]``, float32."""
        return in_forward(self, lambda: self.read(hidden_states(self.backbone, packed)[packed.last_C]))

    def at_tokens(self, packed: Packed) -> Tensor:
        """Raw score of the prefix that ends with each scored token: ``[S]``, float32."""
        return in_forward(self, lambda: self.read(hidden_states(self.backbone, packed)[packed.own_S]))

    def before_tokens(self, packed: Packed) -> Tensor:
        """Value of the state before each scored token: ``[S]``, float32."""
        return in_forward(self, lambda: self.read(hidden_states(self.backbone, packed)[packed.source_S]))

    def read(self, hidden: Tensor) -> Tensor:
        """Raw score of the prefixes with these hidden states ``[..., E]``: ``[...]``."""
        return self.head(hidden.to(self.head.weight.dtype))[..., 0]


class TokenRewardModel(HeadModel):
    """A score for every next token: one pass over a prefix scores all its continuations.

    The score of a prefix is read one token earlier, in the column of its last token.

    Source: Rashid et al. 2025, "Towards Cost-Effective Reward Guided Text Generation": one output a token of the vocabulary.
    """

    file = TOKEN_HEAD_FILE

    def __init__(self, backbone: PreTrainedModel, rule: RewardRule | None = None):
        super().__init__(backbone, backbone.config.vocab_size, rule)

    def at_ends(self, packed: Packed) -> Tensor:
        """Raw score of each completion: ``[C]``, float32."""
        last_S = packed.own_S == packed.last_C[packed.completion_S]
        hidden_CE = hidden_states(self.backbone, packed)[packed.source_S[last_S]]
        return self.chosen(hidden_CE, packed.target_S[last_S])

    def chosen(self, hidden_SE: Tensor, token_S: Tensor) -> Tensor:
        """Raw score of each prefix continued by one given token: ``[S]``; no other column of the head is computed."""
        weight_SE, bias_S = self.head.weight[token_S], self.head.bias[token_S]
        return (hidden_SE.to(weight_SE.dtype) * weight_SE).sum(-1) + bias_S

    def every(self, hidden: Tensor) -> Tensor:
        """Raw score of each prefix ``[..., E]`` continued by every token: ``[..., V]``."""
        return self.head(hidden.to(self.head.weight.dtype))


def save_head(head: nn.Linear, path: Path) -> None:
    """Write the weights of a head; of a sharded one all ranks help, and the first writes."""
    state = whole_state(head) if has_shards(head) else head.state_dict()
    if rank() == 0:
        save_file({name: t.contiguous() for name, t in state.items()}, path)


def load_scalar(folder: Path, device: torch.device | str = "cpu", trainable: bool = False) -> ScalarModel:
    """A trained reward model.

    Raises:
        ValueError: the folder holds no trained head: a random one would give random rewards.
    """
    _require(folder, HEAD_FILE, "it is not a reward model. Give the artifact of the reward_model stage")
    return _with_head(ScalarModel(load_backbone(folder, device, trainable)), folder, device, trainable)


def load_token_reward(folder: Path, device: torch.device | str = "cpu", trainable: bool = False) -> TokenRewardModel:
    """A trained model of the rewards of next tokens.

    Raises:
        ValueError: the folder holds none.
    """
    _require(folder, TOKEN_HEAD_FILE, "it scores no next tokens. Give the artifact of the token_reward stage")
    return _with_head(TokenRewardModel(load_backbone(folder, device, trainable)), folder, device, trainable)


def _require(folder: Path, name: str, advice: str) -> None:
    if not (folder / name).is_file():
        raise ValueError(f"{folder} has no {name}: {advice}")


H = TypeVar("H", bound=HeadModel)


def _with_head(model: H, folder: Path, device: torch.device | str, trainable: bool) -> H:
    model.rule = load_rule(folder)
    model.head.load_state_dict(load_file(folder / model.file))
    return model.requires_grad_(trainable).to(device)


def load_rule(folder: Path) -> RewardRule:
    """How a trained model is read."""
    return RewardRule(**json.loads((folder / RULE_FILE).read_text(encoding="utf-8")))


def new_scalar(folder: Path, seed: int, device: torch.device | str = "cpu") -> ScalarModel:
    """A policy's backbone with an untrained head."""
    model = ScalarModel(load_backbone(folder, device, trainable=True))
    model.init_head(seed)
    return model


def new_token_reward(folder: Path, device: torch.device | str = "cpu") -> TokenRewardModel:
    """A policy's backbone with a head of zeros: a token that no data shows stays at 0, and no maximum is that of noise."""
    model = TokenRewardModel(load_backbone(folder, device, trainable=True))
    nn.init.zeros_(model.head.weight)
    nn.init.zeros_(model.head.bias)
    return model


def save_scalar(model: HeadModel, parent: Path, out: Path) -> None:
    """Backbone with adapters merged, head, reading rule, and the tokenizer with its chat template."""
    merge_adapters(model.backbone)
    save_weights(model.backbone, out)
    save_head(model.head, out / model.file)
    (out / RULE_FILE).write_text(json.dumps(asdict(model.rule)), encoding="utf-8")
    copy_tokenizer(parent, out)
    copy_generation_config(parent, out)
