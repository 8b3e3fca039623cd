"""A small Llama-shaped model with random weights and a byte tokenizer: a base model for first looks and for tests."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from models.configs.base_model import ScratchConfig
from models.seeds import derive_seed

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer(max_position: int) -> PreTrainedTokenizerFast:
    """One token a byte, no merges, ChatML control tokens: any text encodes, and nothing has to be learned."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(BPE({symbol: i for i, symbol in enumerate([*SPECIAL, *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    end, start, turn = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=start, eos_token=turn, pad_token=end, model_max_length=max_position, chat_template=CHATML
    )


def make_scratch(config: ScratchConfig, seed: int) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Random weights from the seed, in float32, and the tokenizer that fits them."""
    tokenizer = byte_tokenizer(config.max_position)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.max_position,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL.index("<|im_start|>"),
        eos_token_id=SPECIAL.index("<|im_end|>"),
        pad_token_id=SPECIAL.index("<|endoftext|>"),
    )
    torch.manual_seed(derive_seed(seed, "scratch"))
    return LlamaForCausalLM(shape), tokenizer
