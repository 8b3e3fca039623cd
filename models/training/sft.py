"""Stage entry: supervised fine-tuning on demonstrations."""

from pathlib import Path
from typing import Any

from data.groups import demonstration_group
from data.records import Demonstration
from data.tables import read_table
from data.templates import load_tokenizer
from models.configs.sft import SFTConfig
from models.preflight import check_eos_is_trained
from models.rendering import drop_long, eos_ids
from models.run import Run
from models.training.imitation import imitate


def train(config: SFTConfig, *, base: Path, data: Path, seed: int, run: Run) -> dict[str, Any]:
    """Fine-tune ``base`` on ``demonstrations.parquet`` of ``data``: the loss is on assistant tokens, end-of-turn included."""
    tokenizer = load_tokenizer(base)
    records = read_table(data / "demonstrations.parquet", Demonstration)
    groups = [demonstration_group(tokenizer, record.messages) for record in records]
    groups = [groups[i] for i in drop_long(groups, config.max_tokens, run)]
    check_eos_is_trained(groups, eos_ids(base, tokenizer))
    return imitate(config, base, groups, seed, run)
