"""Stage entry: bring the base model in, in one format, whatever it came from."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data.templates import PLAIN_CHAT_TEMPLATE
from models.configs.base_model import BaseModelConfig
from models.packaged import PACKAGED, load_packaged
from models.precision import resolve_dtype
from models.preflight import check_head
from models.run import Run
from models.scratch import CHATML, make_scratch


def prepare(config: BaseModelConfig, *, seed: int, run: Run) -> dict[str, Any]:
    """Write the base policy: weights in the resolved type, tokenizer, chat template.

    Raises:
        ValueError: no such model, or an architecture whose head this code cannot read.
        ConnectionError: the hub or the package index cannot be reached.
    """
    model, tokenizer, note = _source(config, seed, run)
    tokenizer.chat_template = _template(config.chat_template) or tokenizer.chat_template or PLAIN_CHAT_TEMPLATE
    model = model.to(getattr(torch, resolve_dtype(config.dtype)))
    model.save_pretrained(run.out)
    tokenizer.save_pretrained(run.out)
    check_head(run.out)
    return {
        "model": config.name if config.kind != "scratch" else "scratch",
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "note": note,
    }


def _source(config: BaseModelConfig, seed: int, run: Run) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    if config.kind == "packaged":
        return load_packaged(config.name, run)
    if config.kind == "scratch":
        return *make_scratch(config.scratch, seed), "random weights"
    if config.kind == "folder":
        if not (Path(config.name) / "config.json").is_file():
            raise ValueError(f"{config.name} is not a model folder: it has no config.json. Give the folder that save_pretrained wrote")
        return _pretrained(config.name, None), AutoTokenizer.from_pretrained(config.name), ""
    return _from_hub(config)


def _pretrained(name: str, revision: str | None) -> PreTrainedModel:
    # Safetensors only: other weight formats are pickles, which can run code.
    return AutoModelForCausalLM.from_pretrained(name, revision=revision or "main", dtype="auto", use_safetensors=True)


def _from_hub(config: BaseModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    try:
        return _pretrained(config.name, config.revision), AutoTokenizer.from_pretrained(config.name, revision=config.revision), ""
    except OSError as error:
        raise ConnectionError(
            f"the model {config.name!r} could not be loaded from the hub ({str(error).splitlines()[0]}). Without the hub: "
            f"set base_model.kind=packaged and base_model.name to one of {', '.join(PACKAGED)}, or base_model.kind=folder and a local path"
        ) from error


def _template(wanted: str) -> str:
    if wanted in ("", "chatml"):
        return CHATML if wanted else ""
    return Path(wanted).read_text(encoding="utf-8")
