"""Tiny models whose weights are large enough to matter, records to learn from, and stages run in the process that they really have."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from data.packing import Group
from data.records import Demonstration, Label, Message, Preference, Prompt, Ranking, record_id
from data.tables import write_table
from data.templates import load_tokenizer
from models.configs.base_model import ScratchConfig
from models.heads import RewardRule, new_scalar, save_scalar
from models.loading import copy_tokenizer, load_policy
from models.run import Run, read_journal
from models.scratch import make_scratch
from models.worker import encode_input
from tasks import process
from tasks.process import Limits, Result, StageProcessError, run_process

SMALL = ScratchConfig(hidden_size=32, intermediate_size=48, layers=2, heads=4, kv_heads=2, max_position=256)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
    process.close_zygote()


# Models


@torch.no_grad()
def roughen(model: nn.Module, seed: int = 0, scale: float = 0.2) -> None:
    """Weights far from the tiny ones of a fresh model, with which attention is flat and a wrong mask hardly shows."""
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        values = torch.randn(parameter.shape, generator=noise)
        parameter.copy_(scale * values if parameter.ndim > 1 else 1 + 0.1 * values)


def save_base(folder: Path, seed: int = 0) -> Path:
    model, tokenizer = make_scratch(SMALL, seed)
    roughen(model, seed)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy folder: two layers, width 32, one token a byte."""
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another policy of the same shape."""
    return save_base(tmp_path_factory.mktemp("other"), seed=5)


@pytest.fixture(scope="session")
def half(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base`` in bfloat16."""
    folder = tmp_path_factory.mktemp("half")
    load_policy(base).bfloat16().save_pretrained(folder)
    copy_tokenizer(base, folder)
    return folder


@pytest.fixture(scope="session")
def reward_folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("reward")
    model = new_scalar(base, seed=1)
    roughen(model, seed=1)
    model.rule = RewardRule(mean=0.3, deviation=2.0, trained_pairs=4)
    save_scalar(model, base, folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(base)


@pytest.fixture
def policy(base: Path) -> PreTrainedModel:
    """The policy of ``base``, frozen, in float32."""
    return load_policy(base)


class _RMSNorm(nn.Module):
    """transformers' RMSNorm without its detour through float32, which would hide all digits beyond the seventh."""

    def __init__(self, old: nn.Module) -> None:
        super().__init__()
        self.weight, self.epsilon = old.weight, old.variance_epsilon

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden * (hidden.pow(2).mean(-1, keepdim=True) + self.epsilon).rsqrt()


def in_float64(model: nn.Module) -> nn.Module:
    """The model in float64, norms included."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ == "LlamaRMSNorm":
            model.set_submodule(name, _RMSNorm(module))
    return model.double()


@pytest.fixture
def policy64(base: Path) -> nn.Module:
    """The policy with packed attention, trainable, in float64."""
    return in_float64(load_policy(base, trainable=True))


@pytest.fixture
def plain64(base: Path) -> nn.Module:
    """The same weights as transformers runs them, one sequence at a time, in float64."""
    return in_float64(LlamaForCausalLM.from_pretrained(base, dtype="auto", attn_implementation="sdpa").eval())


@pytest.fixture
def new_run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    """Makes handles of attempts at a stage in this process; those of one name find each other's checkpoints."""
    made: list[Run] = []

    def make(name: str = "run", stage_key: str = "key-0") -> Run:
        out, checkpoints = tmp_path / name / "out", tmp_path / name / "checkpoints"
        for folder in (out, checkpoints):
            folder.mkdir(parents=True, exist_ok=True)
        made.append(Run(out, checkpoints, stage_key))
        return made[-1]

    yield make
    for run in made:
        run.close()


@pytest.fixture
def run(new_run: Callable[..., Run]) -> Run:
    """The handle of one attempt."""
    return new_run()


@pytest.fixture(scope="session")
def random_groups() -> Callable[..., list[Group]]:
    """Makes groups of random tokens: ragged prompts, several ragged completions each."""

    def make(count: int, completions: int, seed: int = 0, vocabulary: int = 259) -> list[Group]:
        noise = torch.Generator().manual_seed(seed)

        def tokens(most: int) -> list[int]:
            length = int(torch.randint(1, most + 1, (1,), generator=noise))
            return torch.randint(vocabulary, (length,), generator=noise).tolist()

        return [Group(tokens(9), [tokens(7) for _ in range(completions)]) for _ in range(count)]

    return make


# Records


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def ranking(number: int) -> Ranking:
    """Three answers to a question, the scores of which have one tie."""
    texts = tuple(f"{number}{letter}" for letter in "xyz")
    scores = (float(number % 3), 1.0, 0.25 * number)
    ranks = tuple(sorted(set(scores), reverse=True).index(s) for s in scores)
    return Ranking(record_id(number), "toy", user(f"{number}?"), texts, ranks, scores)


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder with a small table of every kind."""
    folder = tmp_path_factory.mktemp("tables")
    prompts = [Prompt(f"p{i}", "toy", user(f"{i} + 1?"), str(i + 1), "number") for i in range(8)]
    demonstrations = [Demonstration(f"d{i}", "toy", (*user(f"{i} + 1?"), Message("assistant", str(i + 1)))) for i in range(10)]
    pairs = [Preference(f"c{i}", "toy", user(f"{i}?"), f"good {i}", "bad", margin=0.5 * (i % 2)) for i in range(10)]
    write_table(folder / "prompts.parquet", prompts[:6])
    write_table(folder / "test_prompts.parquet", prompts[3:])
    write_table(folder / "demonstrations.parquet", demonstrations)
    write_table(folder / "preferences.parquet", pairs)
    write_table(folder / "test_preferences.parquet", pairs[:3])
    write_table(folder / "labels.parquet", [Label(f"l{i}", "toy", user(f"{i % 7}?"), f"good {i}", i % 3 == 0) for i in range(10)])
    write_table(folder / "rankings.parquet", [ranking(i) for i in range(8)])
    return folder


# Stages in their own process

INTERRUPTED = '''
"""Entries that end in the middle, and a judge."""

import os
import signal

import torch
from pydantic import BaseModel

from models import worker
from models.training.checkpoint import load_checkpoint, save_checkpoint


class Interrupted(BaseModel):
    entry: str
    config: dict
    at: int


def stopped(config: Interrupted, *, seed, run, **inputs):
    """An entry that gets SIGTERM when it tells of its progress for the ``at``-th time."""
    progress, told = run.progress, []

    def stop(done, total, **rates):
        progress(done, total, **rates)
        told.append(done)
        if len(told) == config.at:
            os.kill(os.getpid(), signal.SIGTERM)

    run.progress = stop
    entry = worker.load_entry(config.entry, ["models"])
    return worker.call_entry(entry, worker.config_class(entry).model_validate(config.config), inputs, seed, run)


class Saves(BaseModel):
    steps: int


def saves(config: Saves, *, run):
    """Counts up, one checkpoint a step; says where it began."""
    found = load_checkpoint(run)
    began = found[0] if found else 0
    assert found is None or float(found[1]["x"][0]) == began == found[2]["x"]
    for step in range(began + 1, config.steps + 1):
        save_checkpoint(run, step, {"x": torch.full((3,), float(step))}, {"x": step})
    return {"began": began}


def judge(prompt, text):
    return len(set(text)) / 10
'''


class StageProcess:
    """A stage in a process of its own. Every attempt finds the checkpoints of the one before."""

    def __init__(self, folder: Path, entry: str, config: BaseModel, inputs: Mapping[str, Path], seed: int = 3) -> None:
        self.folder, self.entry, self.config, self.inputs, self.seed = folder, entry, config, inputs, seed
        self.checkpoints = folder / "checkpoints"
        self.checkpoints.mkdir(parents=True)
        (folder / "interrupted.py").write_text(INTERRUPTED)
        self.attempts = 0
        self.environment: dict[str, str] = {}
        self.more: dict[str, Any] = {}  # for the spec

    def run(self, failpoint: str = "", entry: str = "", config: Mapping[str, Any] | None = None) -> Result:
        """One attempt, to its end or to its failpoint."""
        self.attempts += 1
        job = self.folder / f"attempt-{self.attempts}"
        spec = self.spec(job, failpoint, entry, config)
        self.out = job / "out"
        return run_process(spec, job, entry or self.entry, Limits(), lambda line: None)

    def spec(self, job: Path, failpoint: str = "", entry: str = "", config: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """What a process of the stage is told that works in the folder `job`."""
        (job / "out").mkdir(parents=True)
        return {
            "entry": entry or self.entry,
            "config": self.config.model_dump(mode="json") if config is None else config,
            "inputs": {name: encode_input(value) for name, value in self.inputs.items()},
            "seed": self.seed,
            "stage_key": "key-0",
            "micro_batch_scale": 1.0,
            "out": str(job / "out"),
            "checkpoints": str(self.checkpoints),
            "log": str(job / "log.txt"),
            "root": str(self.folder),
            "runnable": ["models", "interrupted"],
            "folder": str(self.folder),
            "environment": {"POSTTRAIN_THREADS": "1", "POSTTRAIN_FAILPOINT": failpoint, **self.environment},
            "sources": {},
            **self.more,
        }

    def kill(self, failpoint: str) -> None:
        """An attempt that is killed by SIGKILL at a failpoint; anything else is an error."""
        with pytest.raises(StageProcessError, match="was killed by SIGKILL"):
            self.run(failpoint)

    def stop(self, at: int) -> None:
        """An attempt that gets SIGTERM at its ``at``-th word of progress and leaves with 143."""
        config = {"entry": self.entry, "config": self.config.model_dump(mode="json"), "at": at}
        with pytest.raises(StageProcessError, match="stopped by SIGTERM") as caught:
            self.run(entry="interrupted:stopped", config=config)
        assert caught.value.exit_code == 143

    def digests(self) -> dict[str, str]:
        """Of every file of the last attempt's output."""
        files = (path for path in sorted(self.out.rglob("*")) if path.is_file())
        return {path.relative_to(self.out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def history(self) -> list[tuple[int, dict[str, float]]]:
        """Reported metrics, save for measured times."""
        return [(entry["step"], untimed(entry["metrics"])) for entry in read_journal(self.checkpoints / "journal.jsonl")]

    def saved_steps(self) -> list[int]:
        return sorted(int(path.name.removeprefix("step-")) for path in self.checkpoints.glob("step-*"))


def untimed(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("time/")}


@pytest.fixture(scope="session")
def stage_process() -> Callable[..., StageProcess]:
    return StageProcess


@pytest.fixture(scope="session")
def journal() -> Callable[[Run], list[tuple[int, dict[str, float]]]]:
    """Reads what a stage in this process has reported, save for measured times."""
    return lambda run: [(e["step"], untimed(e["metrics"])) for e in read_journal(run.checkpoints / "journal.jsonl")]


# A bandit: three letters to answer with, one of which is right

BANDIT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
)


@pytest.fixture(scope="session")
def bandit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy over the letters a to d and the end token, and tables in which b is the right answer to a."""
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import BPE
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("bandit")
    backend = Tokenizer(BPE({token: i for i, token in enumerate(["<end>", *"abcd"])}, []))
    backend.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>", chat_template=BANDIT_TEMPLATE)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 5}
    model = LlamaForCausalLM(LlamaConfig(**sizes, eos_token_id=0, bos_token_id=None, pad_token_id=None, tie_word_embeddings=False))
    model.save_pretrained(folder)
    write_table(folder / "prompts.parquet", [Prompt("p", "bandit", user("a"), "b", "exact")])
    write_table(folder / "preferences.parquet", [Preference("c", "bandit", user("a"), "b", "c")])
    write_table(folder / "demonstrations.parquet", [Demonstration("d", "bandit", (*user("a"), Message("assistant", "b")))])
    return folder


@pytest.fixture(scope="session")
def read_json() -> Callable[[Path], Any]:
    return lambda path: json.loads(path.read_text(encoding="utf-8"))
