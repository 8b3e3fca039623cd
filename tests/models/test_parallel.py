"""Two ranks under torchrun are one trainer: the same losses, checkpoints that any number of ranks takes up, one death for all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from models.configs.checkpointing import CheckpointConfig
from models.configs.dpo import DPOConfig
from models.configs.optimisation import OptimConfig
from models.configs.parallel import ParallelConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sft import SFTConfig

EVERY_UPDATE = CheckpointConfig(every_s=0, every_updates=1)
BATCHES = {"batch_size": 4, "micro_batch_tokens": 60, "optim": OptimConfig(learning_rate=1e-2), "epochs": 2, "checkpoint": EVERY_UPDATE}
TWO = ParallelConfig(ranks=2)
PREFERENCES = {"policy": "base", "preferences": "tables"}


@pytest.fixture
def start(request: pytest.FixtureRequest, stage_process: Callable[..., Any], tmp_path: Path) -> Callable[..., Any]:
    def make(name: str, entry: str, config: BaseModel, inputs: dict[str, str]) -> Any:
        found = {key: request.getfixturevalue(fixture) for key, fixture in inputs.items()}
        return stage_process(tmp_path / name, f"models.training.{entry}:train", config, found)

    return make


def test_curves(start):
    for name, entry, config, inputs in [
        ("sft", "sft", SFTConfig(**BATCHES), {"base": "base", "data": "tables"}),
    ]:
        one, two = start(f"{name}-1", entry, config, inputs), start(f"{name}-2", entry, config.model_copy(update={"parallel": TWO}), inputs)
        a = one.run()
        b = two.run()
        print(a.meta, b.meta)
        for (s, m), (t, n) in zip(one.history(), two.history(), strict=True):
            print(s, t, m["train/loss"], n["train/loss"], m["train/grad_norm"], n["train/grad_norm"])
        print(one.digests(), two.digests())
