"""Tokenizers made on the spot, a stand-in for the stage that runs curation, and the folder of real data where there is one."""

import itertools
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from data.templates import load_tokenizer

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = ["user\nHello there\n\n\nHow are you?\nassistant\nFine, 12 + 34 = 46. system Be good. What is the answer?"] * 4

Build = Callable[..., PreTrainedTokenizerBase]


class FakeRun:
    """What curation uses of a stage's run, kept for the test to look at."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.sharing = None
        self.metrics: dict[str, float] = {}
        self.lines: list[str] = []
        self.steps: list[tuple[int, int]] = []
        out.mkdir(parents=True)

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        self.metrics |= metrics

    def progress(self, done: int, total: int, **rates: float) -> None:
        self.steps.append((done, total))

    def log(self, text: str) -> None:
        self.lines.append(text)


def byte_level() -> Tokenizer:
    """A byte-level BPE as GPT-2's and SmolLM2's, with a few hundred merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return tokenizer


def sentencepiece() -> Tokenizer:
    """A BPE as Llama 2's: a space before every text, unknown characters as bytes, its control tokens part of the vocabulary."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *"UserAsitnt:Hlo12", "\u2581H"]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("\u2581", "H")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def save(core: Tokenizer, folder: Path, *, template: str | None, specials: list[str], absorbing: bool = False, **names: str | None) -> Path:
    core.add_special_tokens([AddedToken(t, special=True, normalized=False, lstrip=absorbing, rstrip=absorbing) for t in specials])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, **names)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder with a ChatML tokenizer; pad is the end token, as in SmolLM2."""
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>"}
    return save(byte_level(), tmp_path_factory.mktemp("chat"), template=CHATML, specials=SPECIALS, **names)


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder with a base model's tokenizer: no chat template."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return save(sentencepiece(), tmp_path_factory.mktemp("base"), template=None, specials=["<unk>", "<s>", "</s>"], **names)


@pytest.fixture(scope="session")
def chat_tokenizer(chat_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(chat_folder)


@pytest.fixture(scope="session")
def base_tokenizer(base_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(base_folder)


@pytest.fixture
def with_template(tmp_path: Path) -> Build:
    """Makes a byte-level tokenizer with the chat template and end token given."""

    def build(template: str, eos_token: str | None = "<|im_end|>", absorbing: bool = False) -> PreTrainedTokenizerBase:
        folder = tmp_path / "tokenizer"
        return load_tokenizer(save(byte_level(), folder, template=template, specials=SPECIALS, absorbing=absorbing, eos_token=eos_token))

    return build


@pytest.fixture
def new_run(tmp_path: Path) -> Callable[[], FakeRun]:
    """Makes a run with an output folder of its own."""
    numbers = itertools.count()
    return lambda: FakeRun(tmp_path / f"out{next(numbers)}")


@pytest.fixture
def run(new_run: Callable[[], FakeRun]) -> FakeRun:
    return new_run()


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets, which is not part of the repository."""
    root = Path(os.environ.get("POSTTRAIN_SHARED") or Path(__file__).resolve().parents[3] / "shared") / "data"
    if not root.is_dir():
        pytest.skip(f"no real data: {root} is absent (set POSTTRAIN_SHARED to the folder that holds data/)")
    return root
