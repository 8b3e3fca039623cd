"""vllm behind the sampler's interface, with a stand-in for the library: the shapes of vllm 0.33's LLM, SamplingParams and outputs.

The stand-in samples with this project's own sampler. No engine of vllm was ever run by these tests: that takes a GPU.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers import PreTrainedModel

from data.packing import Group
from models import sampling_backend
from models.configs.evaluation import EvaluateConfig
from models.configs.sampling import SamplingConfig
from models.evaluation import evaluate
from models.generation import generate
from models.loading import load_policy
from models.run import Run
from models.sampler import Sampler
from models.sampling_backend import chosen_backend
from models.vllm_sampler import VllmSampler, logprobs_mode, policy_logps
from tasks.key import semantic

PROMPTS = [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
EOS = tuple(range(60))
SAMPLING = SamplingConfig(max_tokens=6, backend="vllm")


@dataclass
class Logprob:
    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    index: int
    text: str
    token_ids: Sequence[int]
    cumulative_logprob: float | None
    logprobs: list[dict[int, Logprob]] | None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


@dataclass
class SamplingParams:
    """Keywords and refusals of vllm's own."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16
    logprobs: int | None = None
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.temperature < 1e-5 and self.n > 1:
            raise ValueError(f"n must be 1 when using greedy sampling, got {self.n}.")
        if self.temperature > 2.0:
            raise ValueError(f"temperature must be in [0, 2], got {self.temperature}.")


@dataclass
class Library(ModuleType):
    """The stand-in for the module ``vllm``; ``off`` is added to every log-probability that it tells."""

    off: float = 0.0
    made: list[dict[str, Any]] = field(default_factory=list)
    asked: list[SamplingParams] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__("vllm")
        library = self

        class LLM:
            def __init__(self, model: str, **arguments: Any) -> None:
                library.made.append({"model": model, **arguments})
                self.policy, self.mode = load_policy(Path(model)), arguments["logprobs_mode"]

            def generate(self, prompts: list[Any], sampling_params: list[SamplingParams], *, use_tqdm: bool) -> list[RequestOutput]:
                assert use_tqdm is False and all(set(prompt) == {"prompt_token_ids"} for prompt in prompts)
                library.asked += sampling_params
                return [self._request(p["prompt_token_ids"], params) for p, params in zip(prompts, sampling_params, strict=True)]

            def _request(self, prompt: list[int], params: SamplingParams) -> RequestOutput:
                own = SamplingConfig(temperature=params.temperature, top_k=params.top_k, top_p=params.top_p, max_tokens=params.max_tokens)
                ends = params.stop_token_ids or []
                (rows,) = generate(self.policy, [prompt], own, samples=params.n, eos_ids=ends, seed=params.seed or 0)
                temperature = params.temperature if self.mode == "processed_logprobs" else 1.0
                told = policy_logps(self.policy, [Group(prompt, [row.tokens for row in rows])], temperature or 1.0).tolist()
                logps = iter(told)
                outputs = []
                for index, row in enumerate(rows):
                    places = [{token: Logprob(next(logps) + library.off, 1)} for token in row.tokens]
                    reason = ("stop", row.tokens[-1]) if row.finished else ("length", None)
                    outputs.append(CompletionOutput(index, "", row.tokens, None, places, *reason))
                return RequestOutput(prompt, outputs[::-1])

        self.LLM, self.SamplingParams = LLM, SamplingParams


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    """A machine with a GPU on which vllm is installed, as far as one can see."""
    made = Library()
    version = metadata.version
    monkeypatch.setitem(sys.modules, "vllm", made)
    monkeypatch.setattr(sampling_backend.metadata, "version", lambda name: "0.33.0" if name == "vllm" else version(name))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    return made


def test_the_sampling_is_mapped_exactly_and_the_policys_files_are_read(library: Library, base: Path, policy: PreTrainedModel):
    rows = Sampler(base, policy)(PROMPTS, SAMPLING, samples=3, eos_ids=EOS, seed=7)
    (made,) = library.made
    assert made["model"] == str(base) and made["load_format"] == "safetensors" and made["dtype"] == "float32"
    assert made["generation_config"] == "vllm" and made["logprobs_mode"] == "raw_logprobs" and "trust_remote_code" not in made
    params = library.asked
    assert {(p.n, p.temperature, p.top_k, p.top_p, p.max_tokens) for p in params} == {(3, 1.0, 0, 1.0, 6)}
    assert all(p.logprobs == 0 and p.ignore_eos for p in params)
    assert {tuple(p.stop_token_ids or ()) for p in params} == {EOS} and len({p.seed for p in params}) == 3, "a seed for each prompt"
    assert [len(row) for row in rows] == [3, 3, 3]
    for row, param, prompt in zip(rows, params, PROMPTS, strict=True):
        plain = SAMPLING.model_copy(update={"backend": "own"})
        (own,) = generate(policy, [prompt], plain, samples=3, eos_ids=EOS, seed=param.seed or 0)
        assert [c.tokens for c in row] == [c.tokens for c in own], "in the order of the samples, whatever order they came in"
        assert [c.finished for c in row] == [c.finished for c in own]
        for ours, theirs in zip(own, row, strict=True):
            assert theirs.logps == pytest.approx(ours.logps, abs=1e-4)
    assert any(c.finished for row in rows for c in row) and any(not c.finished for row in rows for c in row)


def test_the_seed_decides_and_greedy_samples_are_one(library: Library, base: Path, policy: PreTrainedModel):
    sampler = Sampler(base, policy)
    first, again, other = (sampler(PROMPTS, SAMPLING, samples=1, eos_ids=EOS, seed=seed) for seed in (1, 1, 2))
    assert first == again != other
    greedy = sampler(PROMPTS, SAMPLING.model_copy(update={"temperature": 0.0}), samples=2, eos_ids=EOS, seed=1)
    assert all(one == two for one, two in greedy) and library.asked[-1].n == 1
    assert len(library.made) == 1


@pytest.mark.parametrize(
    ("fields", "mode"),
    [
        ({}, "raw_logprobs"),
        ({"top_p": 0.9}, "raw_logprobs"),
        ({"temperature": 0.0, "top_k": 3}, "raw_logprobs"),
        ({"temperature": 0.7}, "processed_logprobs"),
    ],
)
def test_log_probabilities_are_before_truncation_at_the_sampling_temperature(fields: dict[str, float], mode: str):
    assert logprobs_mode(SamplingConfig(**fields)) == mode


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": 0.7, "top_p": 0.9}, r"does not tell log-probabilities at temperature 0.7 before top-k 0 and top-p 0.9"),
        ({"temperature": 0.005}, "not at 0.005: set sampling.backend to own"),
        ({"temperature": 3.0}, "not at 3.0: set sampling.backend to own"),
    ],
)
def test_what_it_cannot_do_is_refused(fields: dict[str, float], words: str):
    with pytest.raises(ValueError, match=words):
        logprobs_mode(SamplingConfig(**fields))


def test_other_weights_are_noticed_at_the_first_batch(library: Library, base: Path, other: Path, capsys: pytest.CaptureFixture[str]):
    given = {"samples": 2, "eos_ids": EOS, "seed": 0}
    VllmSampler(base, load_policy(base), SAMPLING).generate(PROMPTS, SAMPLING, **given)
    assert "log-probabilities agree with the policy's: 0.0000 nats a token" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"differ from the policy's by \d+\.\d+ nats a token over \d+ tokens, more than 0.05"):
        VllmSampler(other, load_policy(base), SAMPLING).generate(PROMPTS, SAMPLING, **given)
    library.off = 0.06
    with pytest.raises(ValueError, match=r"by 0\.060 nats"):
        VllmSampler(base, load_policy(base), SAMPLING).generate(PROMPTS, SAMPLING, **given)
    library.off = 0.04
    VllmSampler(base, load_policy(base), SAMPLING).generate(PROMPTS, SAMPLING, **given)


def test_a_stage_samples_with_it(library: Library, base: Path, tables: Path, new_run: Callable[..., Run]):
    config = EvaluateConfig(samples_per_prompt=2, sampling=SAMPLING, chunk_prompts=2)
    evaluate(config, policy=base, reference=base, data=tables, seed=0, run=new_run())
    assert len(library.made) == 1 and len(library.asked) == 10, "five prompts, sampled and greedily"


def test_a_machine_that_lacks_it_says_what_would_help(monkeypatch: pytest.MonkeyPatch, base: Path, capsys: pytest.CaptureFixture[str]):
    auto = SamplingConfig(max_tokens=2, backend="auto")
    Sampler(base, load_policy(base))(PROMPTS, auto, samples=1, eos_ids=EOS, seed=0)
    said = "own sampler, since vllm is not installed: for vllm, pip install vllm, on a machine with an NVIDIA GPU"
    assert said in capsys.readouterr().out
    with pytest.raises(ValueError, match="backend is vllm, and vllm is not installed: set it to auto or own"):
        SAMPLING.cache_extra()
    monkeypatch.setattr(sampling_backend.metadata, "version", lambda name: "0.33.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chosen_backend("auto") == ("own", "CUDA_VISIBLE_DEVICES hides every GPU")


def test_the_key_tells_who_samples(library: Library):
    assert SamplingConfig().cache_extra() == {} and semantic(SAMPLING)["backend"] == "vllm"
    assert SAMPLING.cache_extra() == {"backend": "vllm 0.33.0"}


def test_training_refuses_it(policy: PreTrainedModel):
    with pytest.raises(ValueError, match="samples from policies on disk, unguided: here set it to own"):
        generate(policy, PROMPTS, SAMPLING, samples=1, eos_ids=EOS, seed=0)
