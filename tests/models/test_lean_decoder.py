"""The sampler's step of few operations does what the general one does, with the cache that keeps a prompt once."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from models import lean_decoder, notices
from models.attention import NAME
from models.configs.lora import LoraSettings
from models.generation import GeneralDecoder, decode, decoder_of, prefill, read_inverse
from models.lean_decoder import Joined, LeanDecoder, rotate, unsupported
from models.lora import add_adapters

PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12]]
SHAPE = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}


def model_of(kind: str, dtype: torch.dtype) -> LlamaForCausalLM | Qwen2ForCausalLM:
    """A random model; qwen2 has biases in its projections."""
    torch.manual_seed(0)
    model_class, config = (LlamaForCausalLM, LlamaConfig(**SHAPE)) if kind == "llama" else (Qwen2ForCausalLM, Qwen2Config(**SHAPE))
    model = model_class._from_config(config, attn_implementation=NAME).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn(parameter.shape) * 0.2)  # biases and norms too
    return model.to(dtype)


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@torch.no_grad()
def test_the_lean_step_is_the_general_step(kind: str):
    model = model_of(kind, torch.float64)
    assert not unsupported(model)
    lean = LeanDecoder(model)
    ours, _ = prefill(model, PROMPTS, 3, 8)
    general, _ = prefill(model, PROMPTS, 3, 8)
    keep = [None, torch.tensor([0, 2, 3, 6, 7, 8]), None, torch.tensor([1, 3, 4])]  # uneven rows a prompt, then a prompt without any
    token_R = torch.arange(9) + 20
    for rows in keep:
        if rows is not None:
            ours.select(rows)
            general.select(rows)
            token_R = token_R[rows]
        # transformers computes norms and rotary angles in float32 whatever the model's type: 1e-6, where the paths agree otherwise.
        assert torch.allclose(lean(token_R, ours), decode(model, token_R, general), atol=3e-6)
        token_R = token_R + 1
    hidden_RE = torch.randn(3, SHAPE["hidden_size"], dtype=torch.float64)
    assert torch.equal(lean.logits(hidden_RE), GeneralDecoder(model).logits(hidden_RE))


@torch.no_grad()
def test_the_cache_equals_running_the_whole_sequence():
    model = model_of("llama", torch.float64)
    layout, _ = prefill(model, PROMPTS, 2, 6)
    sampled = torch.tensor([[30, 31, 32], [33, 34, 35], [36, 37, 38], [39, 40, 41], [42, 43, 44], [45, 46, 47]])
    step = LeanDecoder(model)
    for t in range(3):
        hidden_RE = step(sampled[:, t], layout)
    layout.rewind(torch.tensor([3, 1, 3, 2, 3, 0]))  # rows of different lengths: their slots are written again
    again = torch.tensor([1, 2, 3, 4, 5, 6])
    hidden_RE = step(again, layout)
    for row, kept in enumerate([3, 1, 3, 2, 3, 0]):
        ids = PROMPTS[row // 2] + sampled[row, :kept].tolist() + [int(again[row])]
        whole = model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]
        assert torch.allclose(hidden_RE[row], whole, atol=3e-6), f"row {row}"


def test_a_quarter_turn_by_hand():
    """(1, 2) turned by 90 degrees is (-2, 1); with cos 0.6, sin 0.8: (0.6 - 1.6, 1.2 + 0.8) = (-1, 2)."""
    x = torch.tensor([[[1.0, 2.0]]])
    assert rotate(x, torch.zeros(1, 1, 2), torch.tensor([[[-1.0, 1.0]]])).tolist() == [[[-2.0, 1.0]]]
    turned = rotate(x, torch.full((1, 1, 2), 0.6), torch.tensor([[[-0.8, 0.8]]]))
    assert turned[0, 0].tolist() == pytest.approx([-1.0, 2.0])


def test_laid_out_weights_give_the_numbers_of_plain_ones(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    layers = [nn.Linear(64, 96, bias=bias, dtype=torch.bfloat16) for bias in (True, False)]
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    wanted = torch.cat([layer(x) for layer in layers], dim=1)
    assert torch.allclose(Joined(layers)(x), wanted, rtol=0.01, atol=0.01)
    monkeypatch.setattr(lean_decoder, "packs", lambda weight: False)
    assert torch.equal(Joined(layers)(x), wanted)


def test_other_models_take_the_general_path_and_it_is_said_once(
    policy: nn.Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(notices, "_said", set())
    model = model_of("llama", torch.float32)
    assert isinstance(decoder_of(model, 64), LeanDecoder)
    add_adapters(model, LoraSettings(rank=2), 0)
    for _ in range(2):
        assert not isinstance(decoder_of(model, 64), LeanDecoder)
    assert capsys.readouterr().out.count("adapters") == 1
    model.config.model_type = "gemma"
    assert "gemma" in unsupported(model)


@pytest.mark.parametrize(("chance", "token"), [(0.0, 0), (0.2, 0), (0.25, 2), (0.999999999, 2)])
def test_the_inverse_distribution_by_hand(chance: float, token: int):
    found_R, total_R = read_inverse(torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([chance], dtype=torch.float64))
    assert found_R.tolist() == [token]
    assert total_R.tolist() == [4.0]


@pytest.mark.parametrize("vocabulary", [255, 256, 257, 1000])
def test_the_inverse_distribution_is_that_of_one_running_sum(vocabulary: int):
    generator = torch.Generator().manual_seed(0)
    mass_RV = torch.rand(400, vocabulary, generator=generator).pow(6)
    mass_RV[:, ::3] = 0
    chance_R = torch.rand(400, generator=generator, dtype=torch.float64)
    cumulative_RV = mass_RV.double().cumsum(-1)
    wanted_R = torch.searchsorted(cumulative_RV, chance_R[:, None] * cumulative_RV[:, -1:], right=True)[:, 0]
    assert read_inverse(mass_RV, chance_R)[0].tolist() == wanted_R.tolist()


def test_the_last_token_with_mass_is_the_last_that_can_be_read():
    mass_RV = torch.zeros(1, 600)
    mass_RV[0, 300] = 1.0
    assert read_inverse(mass_RV, torch.tensor([1 - 2**-53], dtype=torch.float64))[0].tolist() == [300]


def test_the_base_fixture_is_of_the_lean_kind(base: Path, policy: nn.Module):
    assert not unsupported(policy)  # so that every other test of the sampler runs the lean step
