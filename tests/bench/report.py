"""What a run of the benchmark says: the machine, the versions, model FLOPs beside each rate, tables in Markdown."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from data.groups import demonstration_group, pair_group
from data.packing import Group
from data.templates import load_tokenizer, render_prompt
from models.logprobs import head_weight
from models.training.order import batch_indices
from models.worker import thread_count
from tests.bench.drive import Result
from tests.bench.work import SEED, WORKS, Writer

# (trained, forward): how often the method trains on a token of a sequence and how often it only looks at or generates it, with models of
# the policy's size. PPO: trains policy and critic; generates, and looks with reference, reward model and critic. Log-probabilities at
# sampling time come with the sample.
PASSES = {"sft": (1, 0), "reward_model": (1, 0), "dpo": (1, 1), "grpo": (1, 1), "ppo": (2, 4), "generate": (0, 1)}
# Dense bfloat16 peak of the data sheets, FLOP/s, by a part of the device's name.
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def model_flops(parameters: int, trained_tokens: float, forward_tokens: float) -> float:
    """6 N D_trained + 2 N D_forward: what the model has to compute, whoever computes it and however.

    N is the number of parameters that tokens are multiplied with (the head once, an embedding that is only looked up not at all), D counts
    real tokens of whole sequences: each with its prompt, also where a side stores a shared prompt once or scores few tokens; no padding.
    Attention's own products (about 4 x layers x width x length a token forward) and anything computed twice (checkpointing) are left out.

    Source: Kaplan et al. 2020, table 1; Chowdhery et al. 2022 (PaLM), appendix B.
    """
    return 6.0 * parameters * trained_tokens + 2.0 * parameters * forward_tokens


def matrix_parameters(policy: Any) -> int:
    """``N`` of ``model_flops``."""
    total = sum(p.numel() for p in policy.parameters())
    embedding = policy.get_input_embeddings().weight
    return total if head_weight(policy) is embedding else total - embedding.numel()


def parameters_of(model: Path) -> int:
    """``N`` of the model in a folder, from its shapes alone."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model))
    policy.tie_weights()
    return matrix_parameters(policy)


class Count:
    """Model FLOPs of each lap of a comparison."""

    def __init__(self, name: str, model: Path) -> None:
        self.work, self.passes = WORKS[name], PASSES[name.partition("-")[0]]
        self.parameters = parameters_of(model)
        self.sequence_tokens = _sequence_tokens(name, model)
        self.tag = {"sft": "imitation", "grpo": "prompts", "ppo": "prompts"}.get(name, name)
        self.in_file_order = name.startswith("generate")

    def flops(self, lap: int, done: dict[str, float]) -> float:
        """Of one lap, counted from 0 with the warm-up; ``done`` is what the side says of it."""
        rows = self.work.batch * self.work.samples
        size, batch = len(self.sequence_tokens), self.work.batch
        straight = [i % size for i in range(lap * batch, (lap + 1) * batch)]
        chosen = straight if self.in_file_order else batch_indices(size, batch, lap, SEED, self.tag)
        tokens = sum(self.sequence_tokens[i] for i in chosen)
        tokens += done["tokens"] if self.in_file_order else rows * done.get("completion_tokens", 0.0)
        return model_flops(self.parameters, self.passes[0] * tokens, self.passes[1] * tokens)

    def fill(self, result: Result, warmup: int) -> None:
        """Note the FLOPs of all laps of both sides."""
        result.ours_flops = [self.flops(warmup + i, lap["work"]) for i, lap in enumerate(result.ours)]
        result.peer_flops = [self.flops(warmup + i, lap["work"]) for i, lap in enumerate(result.peer)]


def _sequence_tokens(name: str, model: Path) -> list[int]:
    """Of each example, tokens of its sequences before anything is sampled: of a pair two, of a prompt one a sample."""
    work, writer, tokenizer = WORKS[name], Writer(model), load_tokenizer(model)
    if name == "sft":
        return [demonstration_group(tokenizer, record.messages).n_tokens for record in writer.demonstrations(work)]
    if name in ("reward_model", "dpo"):
        return [_unshared(pair_group(tokenizer, record)) for record in writer.preferences(work)]
    return [work.samples * len(render_prompt(tokenizer, record.messages)) for record in writer.prompts(work)]


def _unshared(group: Group) -> int:
    return sum(len(group.prompt) + len(completion) for completion in group.completions)


# The machine


def machine() -> dict[str, Any]:
    """What the numbers were measured on, and what it reaches in plain matrix products."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": thread_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "gemm_flops_per_s": {"bfloat16": gemm_rate(torch.bfloat16), "float32": gemm_rate(torch.float32)},
    }


def gemm_rate(dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of the fastest of some products [1,024 x K] [K x K]: the most that a layer could reach here."""
    cuda = torch.cuda.is_available()
    torch.set_num_threads(thread_count())
    rows, width = (8192, 8192) if cuda else (1024, 1024)
    a, b = (torch.ones(n, width, dtype=dtype, device="cuda" if cuda else "cpu") for n in (rows, width))
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        torch.mm(a, b)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2.0 * rows * width * width / min(seconds)


def peak_flops_per_s(machine: dict[str, Any]) -> float | None:
    """The GPU's data-sheet peak, for model FLOPs utilisation; None where it is not known."""
    return next((peak for part, peak in PEAKS.items() if part in (machine["gpu"] or "")), None)


def versions(ppo_path: str = "") -> dict[str, str]:
    """Of the libraries that are compared or computed with."""
    found = {}
    for name in ("torch", "transformers", "trl", "accelerate", "numpy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    own = [path.name for path in Path(ppo_path).glob("trl-*.dist-info")] if ppo_path else []
    return found | {"trl for ppo": own[0].removeprefix("trl-").removesuffix(".dist-info") if own else found["trl"]}


# Tables


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def short(rate: float) -> str:
    """1234.5 -> "1,234", 12.345 -> "12.3"."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def achieved(flops_per_s: float, peak: float | None) -> str:
    """1.2e11 -> "120 GFLOP/s"; with the share of the peak where that is known."""
    unit, size = ("TFLOP/s", 1e12) if flops_per_s >= 1e12 else ("GFLOP/s", 1e9)
    return f"{flops_per_s / size:.3g} {unit}" + (f" ({flops_per_s / peak:.1%})" if peak else "")


def comparison_table(summaries: list[dict[str, Any]], peak: float | None) -> str:
    """One row a comparison. The ratio is the median over pairs of laps; in brackets its lowest and highest."""
    rows = []
    for s in summaries:
        sides = [f"{short(s[f'{side}_per_s'])} {s['unit']}/s, {achieved(s[f'{side}_flops_per_s'], peak)}" for side in ("ours", "peer")]
        spread = f"{s['ratio']:.2f} ({s['ratio_low']:.2f} to {s['ratio_high']:.2f})"
        rows.append([s["work"], *sides, spread, f"{s['ours_peak_gib']:.2f} / {s['peer_peak_gib']:.2f}", f"{s['memory_ratio']:.2f}"])
    return table(["work", "ours", "peer", "ratio (lowest to highest)", "peak memory, GiB", "memory ratio"], rows)
