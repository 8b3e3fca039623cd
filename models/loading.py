"""Policies on disk: safetensors, config, tokenizer and chat template in one folder, in transformers' format."""

import shutil
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel

from models.attention import NAME as ATTENTION
from models.lean_layers import keep_less
from models.lora import WithoutAdapters, has_adapters, merge_adapters, merged_state
from models.parallel import has_shards, loading_device, plain_class, rank, whole_state
from models.snapshots import snapshot_folders

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)


def load_policy(folder: Path, device: torch.device | str = "cpu", trainable: bool = False) -> PreTrainedModel:
    """A causal language model with packed attention, in the type it was saved in; frozen unless ``trainable``.

    It stays in evaluation mode: post-training uses no dropout, and the sampler and the trainer must be the same function.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", attn_implementation=ATTENTION)
    return _ready(model, device, trainable)


def load_backbone(folder: Path, device: torch.device | str = "cpu", trainable: bool = False) -> PreTrainedModel:
    """The same without its language-model head, to carry a scalar head."""
    model = AutoModel.from_pretrained(folder, dtype="auto", attn_implementation=ATTENTION)
    return _ready(model, device, trainable)


def _ready(model: PreTrainedModel, device: torch.device | str, trainable: bool) -> PreTrainedModel:
    model.requires_grad_(trainable)
    keep_less(model)
    nn.Module.to(model.eval(), loading_device(device) if trainable else device)
    return model


def load_reference(policy: PreTrainedModel, folder: Path, device: torch.device | str = "cpu") -> PreTrainedModel | WithoutAdapters:
    """The policy as it came in: its own weights where it learns adapters beside them, else a second, frozen model from ``folder``."""
    return WithoutAdapters(policy) if has_adapters(policy) else load_policy(folder, device)


def save_policy(model: nn.Module, parent: Path, out: Path) -> None:
    """Write weights, adapters merged into them, and config; tokenizer and template are the parent's, byte for byte, also of snapshots."""
    assert isinstance(model, PreTrainedModel)
    merge_adapters(model)
    save_weights(model, out)
    for folder in (out, *snapshot_folders(out)):
        copy_tokenizer(parent, folder)


def save_weights(model: PreTrainedModel, out: Path) -> None:
    """Write weights and config. Those of a sharded model are gathered, all ranks helping, and the first rank writes them."""
    if not has_shards(model):
        model.save_pretrained(out)
        return
    state = merged_state(model, whole_state(model))
    if rank() == 0:
        _plain(model, state).save_pretrained(out)


def _plain(model: PreTrainedModel, state: dict[str, Tensor]) -> PreTrainedModel:
    """A model in one piece that takes these weights for its own."""
    with torch.device("meta"):
        plain = plain_class(model)(model.config)
    plain.load_state_dict(state, strict=False, assign=True)  # not strict: a tied head comes with the embedding
    plain.tie_weights()
    if hasattr(model, "generation_config"):  # a backbone has none
        plain.generation_config = model.generation_config
    return plain


def copy_generation_config(parent: Path, out: Path) -> None:
    """What the parent says of sampling, above all its end tokens."""
    if (parent / "generation_config.json").is_file():
        shutil.copyfile(parent / "generation_config.json", out / "generation_config.json")


def copy_tokenizer(parent: Path, out: Path) -> None:
    """The tokenizer travels with every model that was trained with it."""
    for name in TOKENIZER_FILES:
        if (parent / name).is_file():
            shutil.copyfile(parent / name, out / name)
