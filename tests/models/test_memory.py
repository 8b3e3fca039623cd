"""What a stage needs in memory: the lectures' sums, and the estimate against what a stage's own process takes.

    POSTTRAIN_MEASURE_ALL=1 .venv/bin/python -m pytest -s tests/models/test_memory.py

measures every stage of the table below and prints it; without it two of them are measured.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from data.records import Demonstration, Message, Preference, Prompt
from data.tables import write_table
from models import attention, memory, vocabulary_head
from models.configs.base_model import BaseModelConfig, ScratchConfig
from models.configs.dpo import DPOConfig
from models.configs.evaluation import EvaluateConfig
from models.configs.grpo import GRPOConfig
from models.configs.lora import LoraSettings
from models.configs.ppo import PPOConfig
from models.configs.sampling import SamplingConfig
from models.configs.sft import SFTConfig
from models.heads import RewardRule, new_scalar, save_scalar
from models.memory import BytesPerParameter, Lengths, estimate, lengths_of, memory_of_models, shape_for, shape_of
from models.scratch import make_scratch
from models.training import token_reward

# 38 million parameters: large enough that weights are most of what a stage holds.
LARGE = ScratchConfig(hidden_size=512, intermediate_size=1536, layers=12, heads=8, kv_heads=4, max_position=512)
MEASURED = '''
"""An entry that tells how much memory another took beyond what its process had."""

from pathlib import Path

from pydantic import BaseModel

from models import worker


class Measured(BaseModel):
    entry: str
    config: dict


def resident_bytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def peak(config: Measured, *, seed, run, **inputs):
    entry = worker.load_entry(config.entry, ["models"])
    settings = worker.config_class(entry).model_validate(config.config)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = resident_bytes("VmRSS")
    worker.call_entry(entry, settings, inputs, seed, run)
    return {"before": before, "peak": resident_bytes("VmHWM")}
'''
SHORT = SamplingConfig(max_tokens=8, max_rows=16)
LEARN: dict[str, Any] = {"batch_size": 4, "epochs": 2, "micro_batch_tokens": 256}
ROUNDS: dict[str, Any] = {
    "iterations": 2,
    "prompts_per_iteration": 4,
    "samples_per_prompt": 4,
    "micro_batch_tokens": 256,
    "sampling": SHORT,
}
ON_POLICY = {"policy": "large", "data": "texts"}
CASES: dict[str, tuple[str, BaseModel, dict[str, str]]] = {
    "sft": ("models.training.sft:train", SFTConfig(**LEARN), {"base": "large", "data": "texts"}),
    "grpo": ("models.training.grpo:train", GRPOConfig(**ROUNDS), ON_POLICY),
    "grpo, adapters": ("models.training.grpo:train", GRPOConfig(**ROUNDS, lora=LoraSettings(rank=16)), ON_POLICY),
    "dpo": ("models.training.dpo:train", DPOConfig(**LEARN), {"policy": "large", "preferences": "texts"}),
    "ppo": ("models.training.ppo:train", PPOConfig(**ROUNDS), {**ON_POLICY, "reward": "large_reward"}),
    "evaluate": ("models.evaluation:evaluate", EvaluateConfig(sampling=SHORT, micro_batch_tokens=256), {**ON_POLICY, "reference": "large"}),
}
MEASURE = list(CASES) if os.environ.get("POSTTRAIN_MEASURE_ALL") else ["sft", "grpo"]
LENGTHS = Lengths(prompt_tokens=78, completion_tokens=50)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    for part in make_scratch(LARGE, 0):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def large_reward(large: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large_reward")
    model = new_scalar(large, seed=1)
    model.rule = RewardRule(0.0, 1.0, 1)
    save_scalar(model, large, folder)
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables whose rows are 128 tokens long, two to a micro-batch."""
    folder = tmp_path_factory.mktemp("texts")
    questions = [(Message("user", f"{i:03d} " + "word " * 11),) for i in range(8)]
    answer = "an answer" * 5 + "...."
    demonstrations = [Demonstration(f"d{i}", "toy", (*q, Message("assistant", answer))) for i, q in enumerate(questions)]
    write_table(folder / "demonstrations.parquet", demonstrations)
    write_table(folder / "preferences.parquet", [Preference(f"c{i}", "toy", q, answer[:24], answer[:23]) for i, q in enumerate(questions)])
    for name in ("prompts", "test_prompts"):
        write_table(folder / f"{name}.parquet", [Prompt(f"p{i}", "toy", q, "1", "number") for i, q in enumerate(questions)])
    return folder


@pytest.mark.parametrize("stage", MEASURE)
def test_the_estimate_is_what_the_process_takes(stage: str, stage_process: Callable[..., Any], tmp_path: Path, request: Any) -> None:
    entry, config, inputs = CASES[stage]
    folders = {name: request.getfixturevalue(fixture) for name, fixture in inputs.items()}
    process = stage_process(tmp_path, "", config, folders)
    (process.folder / "interrupted.py").write_text(MEASURED)
    measured = process.run(entry="interrupted:peak", config={"entry": entry, "config": config.model_dump(mode="json")}).meta
    estimated = estimate(stage.partition(",")[0], config, shape_of(request.getfixturevalue("large")), LENGTHS)
    assert estimated is not None
    own, taken = estimated.total - measured["before"], measured["peak"] - measured["before"]
    print(f"{stage:14} measured {taken / 2**20:6.0f} MiB, estimated {own / 2**20:6.0f} MiB, {own / taken - 1:+.1%}")
    assert abs(own / taken - 1) < 0.15


# The lectures' sums, in gigabytes


def gigabytes(stage: str, config: BaseModel, billions: int, each: BytesPerParameter) -> float:
    held = memory._models_held(stage, config)
    assert held is not None
    return memory_of_models(billions * 10**9, *held, each).models / 1e9


def test_the_sums_of_the_lectures() -> None:
    """7B fp16: policy, value, reference and reward model, weights only; 8B fp16 with Adam counted as one number a parameter."""
    held = memory._models_held("ppo", PPOConfig())
    assert held is not None
    assert memory_of_models(7 * 10**9, *held, BytesPerParameter(2, 2, 2)).weights / 1e9 == 4 * 14 == 56
    assert gigabytes("ppo", PPOConfig(), 8, BytesPerParameter(2, 2, 2)) == 3 * 16 + 16 + 3 * 16 + 16 == 128
    assert gigabytes("grpo", GRPOConfig(reward="reward_model"), 8, BytesPerParameter(2, 2, 2)) == 3 * 16 + 16 + 16 == 80
    assert gigabytes("grpo", GRPOConfig(kl_coefficient=0.0), 8, BytesPerParameter(2, 2, 2)) == 3 * 16
    # With both of Adam's moments and the masters in float32, as here, a trained model of 8B takes 18 bytes a parameter, not 6.
    assert gigabytes("sft", SFTConfig(), 8, BytesPerParameter(2, 4, 8, masters=4)) == 8 * 18


def test_the_estimate_grows_with_what_it_depends_on() -> None:
    shape = shape_for(BaseModelConfig(kind="scratch", scratch=LARGE, dtype="float32"))
    assert shape is not None

    def total(config: BaseModel, lengths: Lengths = LENGTHS) -> int:
        estimated = estimate("grpo", config, shape, lengths)
        assert estimated is not None
        return estimated.total

    assert total(GRPOConfig(micro_batch_tokens=8192)) > total(GRPOConfig(micro_batch_tokens=4096))
    wide = GRPOConfig(micro_batch_tokens=16, prompts_per_iteration=512, sampling=SamplingConfig(max_rows=2048))
    assert total(wide) > total(wide.model_copy(update={"sampling": SamplingConfig(max_rows=1024)}))
    assert total(wide, Lengths(512, 50)) > total(wide)
    assert estimate("comparison", SamplingConfig(), shape) is None


def test_lengths_come_from_the_report_of_the_data(tmp_path: Path) -> None:
    assert lengths_of(tmp_path) == Lengths()
    table = {"prompt_tokens_max": 31, "completion_tokens_max": 7}
    (tmp_path / "report.json").write_text(json.dumps({"tables": {"prompts": table, "test_prompts": table | {"prompt_tokens_max": 40}}}))
    assert lengths_of(tmp_path) == Lengths(40, 7)


def test_constants_of_modules_that_import_torch_are_the_same_here() -> None:
    assert (memory.BLOCK_LOGITS, memory.BLOCK_COLUMNS) == (vocabulary_head.BLOCK_LOGITS, vocabulary_head.BLOCK_COLUMNS)
    assert (memory.SCORE_CHUNK_TOKENS, memory.SHORT_TOKENS) == (token_reward.CHUNK_TOKENS, attention.SHORT_TOKENS)


def test_a_shape_known_beforehand_is_that_of_the_saved_model(large: Path) -> None:
    known, saved = shape_for(BaseModelConfig(kind="scratch", scratch=LARGE, dtype="float32")), shape_of(large)
    assert known is not None
    assert {**vars(known), "parameters": 0} == {**vars(saved), "parameters": 0}
    assert known.parameters == pytest.approx(saved.parameters, rel=1e-3)
