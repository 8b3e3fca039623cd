"""Low-rank adapters, injected in place: the module tree stays the decoder's own, so that packing, sampling and heads need not know.

y = W x + (alpha / rank) B A x, with W frozen, A [rank, in] random and B [out, rank] zero: a fresh policy is its reference, bit for bit.
A stage's artifact holds merged weights, W + (alpha / rank) B A, a full policy like any other.

Source: Hu et al. 2021 (LoRA), equation 3. By hand, W = 1, A = 2, B = 3, alpha = 4, rank = 1: y = (1 + 4 x 6) x = 25 x.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from models.configs.lora import LoraSettings
from models.parallel import has_shards
from models.seeds import derive_seed

ADAPTER = "default"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TARGETS: dict[str, list[str]] = {"attention": ATTENTION, "all_linear": [*ATTENTION, "gate_proj", "up_proj", "down_proj"]}


def add_adapters(model: PreTrainedModel, settings: LoraSettings, seed: int) -> None:
    """Freeze the weights and put adapters beside those that are named; nothing at rank 0.

    Raises:
        ValueError: the architecture has no matrix of these names.
    """
    if not settings.rank:
        return
    from peft import LoraConfig, inject_adapter_in_model

    wanted = TARGETS[settings.targets]
    found = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if not found.issuperset(wanted):
        raise ValueError(
            f"lora.targets {settings.targets!r} means {', '.join(wanted)}, and {type(model).__name__} has no "
            f"{', '.join(sorted(set(wanted) - found))}: use a Llama-, Qwen- or Mistral-shaped model, or rank 0"
        )
    config = LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=wanted)  # pyright: ignore[reportArgumentType]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "lora"))
        inject_adapter_in_model(config, model, ADAPTER)  # which freezes all else


def _adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """Layers that carry adapters, by name; found without the library, which nobody needs who has none."""
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def has_adapters(model: nn.Module) -> bool:
    """True after ``add_adapters`` with a rank, until they are merged."""
    return bool(_adapted(model))


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Inside, the model computes what it did before it had adapters."""
    layers = _adapted(model)
    for _, layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for _, layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def merge_adapters(model: nn.Module) -> None:
    """W + (alpha / rank) B A in place of each adapted layer, added in float32 and rounded once; nothing where there are none.

    Nor where the weights are sharded: ``merged_state`` does it when they are gathered.
    """
    for name, layer in () if has_shards(model) else _adapted(model):
        weight = layer.base_layer.weight
        weight.copy_(_merged(weight, layer.lora_B[ADAPTER].weight, layer.lora_A[ADAPTER].weight, layer.scaling[ADAPTER]))
        model.set_submodule(name, layer.base_layer)


def _merged(weight: Tensor, b: Tensor, a: Tensor, scaling: float) -> Tensor:
    wide = torch.promote_types(weight.dtype, torch.float32)
    return weight.to(wide) + scaling * b.to(wide) @ a.to(wide)


def merged_state(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of an adapted model, by name, as those of the model that ``merge_adapters`` makes of it."""
    merged = dict(state)
    for name, layer in _adapted(model) if state else ():
        weight, b, a = (merged.pop(f"{name}.{part}.weight") for part in ("base_layer", f"lora_B.{ADAPTER}", f"lora_A.{ADAPTER}"))
        merged[f"{name}.weight"] = _merged(weight, b, a, layer.scaling[ADAPTER]).to(weight.dtype)
        if f"{name}.base_layer.bias" in merged:
            merged[f"{name}.bias"] = merged.pop(f"{name}.base_layer.bias")
    return merged


@contextmanager
def adapters_merged(model: nn.Module) -> Iterator[None]:
    """Inside, the model is what ``merge_adapters`` makes of it; afterwards it has its weights and its adapters back, bit for bit."""
    layers = [] if has_shards(model) else _adapted(model)
    weights = [layer.base_layer.weight.detach().clone() for _, layer in layers]
    merge_adapters(model)
    try:
        yield
    finally:
        for (name, layer), weight in zip(layers, weights, strict=True):
            layer.base_layer.weight.data.copy_(weight)
            model.set_submodule(name, layer)


class WithoutAdapters:
    """The reference of a policy with adapters: the same weights, the adapters switched off. No second copy is held."""

    def __init__(self, policy: PreTrainedModel):
        self.policy = policy

    @property
    def device(self) -> torch.device:
        return self.policy.device

    def base_model(self, **inputs: Any) -> Any:
        """Run the decoder."""
        with adapters_off(self.policy):
            return self.policy.base_model(**inputs)

    def get_output_embeddings(self) -> nn.Module | None:
        """The head, which never has adapters."""
        return self.policy.get_output_embeddings()
