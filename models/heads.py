"""A transformer with one number a token instead of a vocabulary: reward models and value functions.

Axes: ``C`` completions, ``S`` scored tokens, ``E`` hidden width.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from data.packing import Packed
from models.loading import copy_tokenizer, load_backbone
from models.logprobs import hidden_states
from models.lora import merge_adapters
from models.seeds import derive_seed

HEAD_FILE = "scalar_head.safetensors"
RULE_FILE = "reward.json"


@dataclass(frozen=True)
class RewardRule:
    """How to read a trained reward model: scores become (score - mean) / deviation. The number is read at the end-of-turn token."""

    mean: float = 0.0
    deviation: float = 1.0
    trained_pairs: int = 0


class ScalarModel(nn.Module):
    """Backbone and a linear head in float32."""

    def __init__(self, backbone: PreTrainedModel, rule: RewardRule | None = None):
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(
            backbone.config.hidden_size, 1, dtype=torch.promote_types(backbone.dtype, torch.float32), device=backbone.device
        )
        self.rule = rule or RewardRule()

    def init_head(self, seed: int) -> None:
        """Small random weights: the first rewards are near zero and differ."""
        generator = torch.Generator().manual_seed(derive_seed(seed, "scalar head"))
        with torch.no_grad():
            noise = torch.randn(self.head.weight.shape, generator=generator) / (self.head.in_features + 1) ** 0.5
            self.head.weight.copy_(noise)
            self.head.bias.zero_()

    def at_ends(self, packed: Packed) -> Tensor:
        """Raw score of each completion, read at its last token: ``[C]``, float32."""
        return self._read(hidden_states(self.backbone, packed)[packed.last_C])

    def before_tokens(self, packed: Packed) -> Tensor:
        """Value of the state before each scored token: ``[S]``, float32."""
        return self._read(hidden_states(self.backbone, packed)[packed.source_S])

    def reward(self, packed: Packed) -> Tensor:
        """Normalised reward of each completion: ``[C]``."""
        return (self.at_ends(packed) - self.rule.mean) / self.rule.deviation

    def _read(self, hidden: Tensor) -> Tensor:
        return self.head(hidden.to(self.head.weight.dtype))[..., 0]


def load_scalar(folder: Path, device: torch.device | str = "cpu", trainable: bool = False) -> ScalarModel:
    """A trained reward model.

    Raises:
        ValueError: the folder holds no trained head: a random one would give random rewards.
    """
    if not (folder / HEAD_FILE).is_file():
        raise ValueError(f"{folder} has no {HEAD_FILE}: it is not a reward model. Give the artifact of the reward_model stage")
    rule = RewardRule(**json.loads((folder / RULE_FILE).read_text(encoding="utf-8")))
    model = ScalarModel(load_backbone(folder, device, trainable), rule)
    model.head.load_state_dict(load_file(folder / HEAD_FILE))
    return model.requires_grad_(trainable).to(device)


def new_scalar(folder: Path, seed: int, device: torch.device | str = "cpu") -> ScalarModel:
    """A policy's backbone with an untrained head."""
    model = ScalarModel(load_backbone(folder, device, trainable=True))
    model.init_head(seed)
    return model


def save_scalar(model: ScalarModel, parent: Path, out: Path) -> None:
    """Backbone with adapters merged, head, reading rule, and the tokenizer with its chat template."""
    merge_adapters(model.backbone)
    model.backbone.save_pretrained(out)
    save_file({name: t.contiguous() for name, t in model.head.state_dict().items()}, out / HEAD_FILE)
    (out / RULE_FILE).write_text(json.dumps(asdict(model.rule)), encoding="utf-8")
    copy_tokenizer(parent, out)
    generation = parent / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, out / generation.name)
