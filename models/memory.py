"""How much memory a stage will need, before it starts: weights, gradients, optimiser, activations and sampler cache, in bytes."""

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel

from models.cgroups import memory_headroom
from models.configs.base_model import BaseModelConfig
from models.configs.dpo import DPOConfig
from models.configs.grpo import GRPOConfig
from models.configs.nash_md import NashMDConfig
from models.configs.online_dpo import OnlineDPOConfig
from models.configs.policy_gradient import OnPolicyConfig
from models.configs.ppo import PPOConfig
from models.configs.rejection_sampling import RejectionSamplingConfig
from models.configs.sampling import SamplingConfig
from models.precision import resolve_dtype

PROCESS_BYTES = 600 * 2**20  # interpreter, torch and transformers, without any tensor
HEAD_CHUNK_TOKENS = 256
PROMPT_TOKENS = 256  # what is assumed of prompts, whose length only the data tells

# SmolLM2-135M, so that a plan can tell before the wheel was ever downloaded.
_PACKAGED_SHAPES = {"smollm2-135m-instruct": (134_515_008, 30, 576, 1536, 3 * 64, 49_152)}


@dataclass(frozen=True)
class ModelShape:
    """What memory depends on."""

    parameters: int
    layers: int
    hidden: int
    intermediate: int
    kv_width: int  # key-value heads times head width
    vocabulary: int
    weight_bytes: int


@dataclass(frozen=True)
class Memory:
    """Bytes by what they are for."""

    weights: int
    gradients: int
    optimiser: int
    working: int  # activations, or the sampler's cache

    @property
    def total(self) -> int:
        """All of it, the process itself included."""
        return PROCESS_BYTES + self.weights + self.gradients + self.optimiser + self.working


def shape_of(folder: Path) -> ModelShape:
    """The shape of a saved model, from its config.json and the size of its weights."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    width = 2 if config.get("dtype", config.get("torch_dtype")) in ("bfloat16", "float16") else 4
    heads = config["num_attention_heads"]
    head_width = config.get("head_dim") or config["hidden_size"] // heads
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return ModelShape(
        stored // width,
        config["num_hidden_layers"],
        config["hidden_size"],
        config["intermediate_size"],
        config.get("num_key_value_heads", heads) * head_width,
        config["vocab_size"],
        width,
    )


def shape_for(config: BaseModelConfig) -> ModelShape | None:
    """The shape a base model will have, where that is known before it is there."""
    width = 2 if resolve_dtype(config.dtype) == "bfloat16" else 4
    if config.kind == "packaged" and config.name in _PACKAGED_SHAPES:
        return ModelShape(*_PACKAGED_SHAPES[config.name], width)
    if config.kind == "folder" and (Path(config.name) / "config.json").is_file():
        return shape_of(Path(config.name))
    if config.kind == "scratch":
        s = config.scratch
        kv_width = s.kv_heads * s.hidden_size // s.heads
        block = 2 * s.hidden_size**2 + 2 * s.hidden_size * kv_width + 3 * s.hidden_size * s.intermediate_size
        vocabulary = 259
        return ModelShape(
            s.layers * block + vocabulary * s.hidden_size, s.layers, s.hidden_size, s.intermediate_size, kv_width, vocabulary, width
        )
    return None


def estimate(stage: str, config: BaseModel, shape: ModelShape) -> Memory | None:
    """What a stage needs for this configuration; None for stages that hold no model."""
    held = _models_held(stage, config)
    if held is None:
        return None
    trained, frozen = held
    w, p = shape.weight_bytes, shape.parameters
    masters = 0 if w == 4 else 4  # float32 copies of half-precision weights
    tokens = getattr(config, "micro_batch_tokens", 0)
    sampling = getattr(config, "sampling", None)
    return Memory(
        weights=(trained + frozen) * p * w + trained * p * masters,
        gradients=trained * p * 4,  # added up in float32
        optimiser=trained * p * 8,
        # Activations go as half-precision gradients come, and sampling is over before training begins: the largest of the three counts.
        working=max(
            _activations(shape, tokens, trained > 0) if tokens else _head(shape),
            trained * p * w if masters else 0,
            _cache(shape, sampling) if isinstance(sampling, SamplingConfig) else 0,
        ),
    )


def _models_held(stage: str, config: BaseModel) -> tuple[int, int] | None:
    """(models trained, models frozen) that a stage holds at once."""
    if isinstance(config, PPOConfig):
        return 2, 1 + (config.reward == "reward_model")
    if isinstance(config, GRPOConfig):
        return 1, (config.kl_coefficient > 0) + (config.reward == "reward_model")
    if isinstance(config, NashMDConfig):
        return 1, 1 + (config.reward == "reward_model")
    if isinstance(config, OnlineDPOConfig):
        return 1, config.preference.has_reference + (config.reward == "reward_model")
    if isinstance(config, RejectionSamplingConfig):
        return 1, int(config.score == "reward_model")
    if isinstance(config, DPOConfig):
        return 1, int(config.reference_sync_every > 0)
    if stage in ("sft", "reward_model", "kto") or isinstance(config, OnPolicyConfig):
        return 1, 0
    return (0, 1) if stage in ("collect_preferences", "evaluate") else None


def _activations(shape: ModelShape, tokens: int, backward: bool) -> int:
    """Saved for the backward pass per token and layer: two norms in float32, queries to outputs, and the feed-forward's three widths."""
    per_layer = 12 * shape.hidden * 4 + (6 * shape.hidden + 4 * shape.kv_width + 5 * shape.intermediate) * shape.weight_bytes
    layers = shape.layers if backward else 2
    return tokens * layers * per_layer + _head(shape)


def _head(shape: ModelShape) -> int:
    return 4 * HEAD_CHUNK_TOKENS * shape.vocabulary * 4


def _cache(shape: ModelShape, sampling: SamplingConfig) -> int:
    rows = sampling.max_rows
    keys_and_values = rows * (PROMPT_TOKENS + sampling.max_tokens) * shape.layers * 2 * shape.kv_width * shape.weight_bytes
    distributions = 3 * rows * shape.vocabulary * 8
    return keys_and_values + distributions


def available_bytes() -> int:
    """Memory that a new process can have: what the kernel says is available, or less where a container has a limit."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines() if Path("/proc/meminfo").exists() else []
    free = next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 2**62)
    room = memory_headroom()
    return free if room is None else min(free, room)
