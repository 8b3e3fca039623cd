"""Models of a published shape with random weights: what a step costs depends on shapes, not on what was learned."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.loading import copy_generation_config, copy_tokenizer
from tests.bench.work import SEED

SHAPES: dict[str, dict[str, Any]] = {
    # 1.38 billion parameters: 28 layers of Qwen2.5-1.5B's widths; the vocabulary is that of the tokenizer.
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1_000_000.0,
    }
}


def random_model(shape: dict[str, Any], parent: Path, out: Path) -> Path:
    """A Llama in bfloat16 with the tokenizer, the vocabulary and the end tokens of the model in ``parent``."""
    taken = json.loads((parent / "config.json").read_text(encoding="utf-8"))
    ends = {name: taken.get(name) for name in ("vocab_size", "bos_token_id", "eos_token_id", "pad_token_id")}
    config = LlamaConfig(**shape, **ends, max_position_embeddings=4096, tie_word_embeddings=True)
    torch.manual_seed(SEED)
    model: Any = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(out)
    copy_tokenizer(parent, out)
    copy_generation_config(parent, out)
    return out
