"""Sampling by vllm, behind the interface of ``models.generation.generate``, for policies that lie on disk. Needs a GPU.

Written against vllm 0.33. Its engine loads the policy's safetensors a second time, into half of the device's memory; the model that trains
and measures has the other half, and checks the engine's log-probabilities on the first batch.

Axes: ``S`` scored tokens.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from data.packing import Group, pack, split_by_tokens
from models.configs.sampling import SamplingConfig
from models.generation import Completion
from models.logprobs import token_logps
from models.seeds import derive_seed
from models.spending import count_generated

TOLERANCE_NATS = 0.05  # a token, mean absolute difference: other kernels in bfloat16 differ by about 0.01
MEMORY_SHARE = 0.5
CHECK_TOKENS = 8192
COOLEST, HOTTEST = 0.01, 2.0  # vllm raises what is cooler without a word, and refuses what is hotter


class VllmSampler:
    """An engine for one policy.

    Raises:
        ValueError: the sampling cannot be mapped exactly, or the first batch's log-probabilities are not those of the policy.
    """

    def __init__(self, folder: Path, policy: PreTrainedModel, sampling: SamplingConfig) -> None:
        # In this process, so that it ends with it, and counted by nobody.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        import vllm  # type: ignore[import-not-found]

        self.vllm, self.policy = vllm, policy
        self.mode = logprobs_mode(sampling)
        self.is_checked = False
        self.engine = vllm.LLM(
            model=str(folder),
            skip_tokenizer_init=True,
            load_format="safetensors",
            dtype=str(policy.dtype).removeprefix("torch."),  # its own choice for float32 would be float16
            generation_config="vllm",  # none of the folder's defaults
            logprobs_mode=self.mode,
            gpu_memory_utilization=MEMORY_SHARE,
            seed=0,
        )

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingConfig,
        *,
        samples: int,
        eos_ids: Sequence[int],
        seed: int,
        on_step: Callable[[], None] | None = None,
    ) -> list[list[Completion]]:
        """As ``models.generation.generate``, with noise by prompt. ``on_step`` is called once, before the batch."""
        if sampling.temperature and logprobs_mode(sampling) != self.mode:
            raise ValueError(f"the engine gives {self.mode}, which temperature {sampling.temperature} cannot use: make another sampler")
        if on_step is not None:
            on_step()
        asked = samples if sampling.temperature else 1  # greedily all are the same, and vllm refuses more than one
        params = [self._params(sampling, asked, eos_ids, derive_seed(seed, "vllm", i) % 2**62) for i in range(len(prompts))]
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        outputs = self.engine.generate(given, params, use_tqdm=False)
        rows = [[_completion(one, eos_ids) for one in sorted(output.outputs, key=lambda one: one.index)] for output in outputs]
        if not self.is_checked:
            self._check([Group(list(prompt), [c.tokens for c in row]) for prompt, row in zip(prompts, rows, strict=True)], rows, sampling)
        rows = [row * (samples // asked) for row in rows]
        count_generated(sum(len(completion.tokens) for row in rows for completion in row))
        return rows

    def _params(self, sampling: SamplingConfig, samples: int, eos_ids: Sequence[int], seed: int) -> Any:
        return self.vllm.SamplingParams(
            n=samples,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_tokens=sampling.max_tokens,
            seed=seed,
            stop_token_ids=list(eos_ids),
            ignore_eos=True,  # else what the folder's files call ends would end it too
            logprobs=0,  # of the sampled token alone
            detokenize=False,
        )

    def _check(self, groups: Sequence[Group], rows: Sequence[Sequence[Completion]], sampling: SamplingConfig) -> None:
        own = policy_logps(self.policy, groups, sampling.temperature or 1.0)
        told = torch.tensor([logp for row in rows for completion in row for logp in completion.logps])
        difference = float((own - told).abs().mean()) if len(own) == len(told) and len(own) else float("nan")
        if not difference <= TOLERANCE_NATS:
            raise ValueError(
                f"vllm's log-probabilities differ from the policy's by {difference:.3f} nats a token over {len(own)} tokens, more than "
                f"{TOLERANCE_NATS}: it does not sample from this policy; set sampling.backend to own"
            )
        self.is_checked = True
        print(f"vllm's log-probabilities agree with the policy's: {difference:.4f} nats a token over {len(own)} tokens", flush=True)


def logprobs_mode(sampling: SamplingConfig) -> str:
    """What vllm has to return so that it is the log-probability at the sampling temperature before top-k and top-p.

    Raises:
        ValueError: it returns no such thing, or cannot sample so.
    """
    temperature = sampling.temperature
    if temperature and not COOLEST <= temperature <= HOTTEST:
        raise ValueError(f"vllm samples at temperature 0 or {COOLEST} to {HOTTEST}, not at {temperature}: set sampling.backend to own")
    if temperature in (0.0, 1.0):
        return "raw_logprobs"
    if sampling.truncates:
        raise ValueError(
            f"vllm does not tell log-probabilities at temperature {temperature} before top-k {sampling.top_k} and top-p {sampling.top_p}: "
            "set sampling.backend to own, or temperature to 1, or top_k to 0 and top_p to 1"
        )
    return "processed_logprobs"


@torch.no_grad()
def policy_logps(policy: PreTrainedModel, groups: Sequence[Group], temperature: float) -> torch.Tensor:
    """Log-probability of every token of every completion, in their order: ``[S]``, nats."""
    parts = [token_logps(policy, pack(part).to(policy.device), temperature)[0].cpu() for part in split_by_tokens(groups, CHECK_TOKENS)]
    return torch.cat(parts).float()


def _completion(output: Any, eos_ids: Sequence[int]) -> Completion:
    tokens = list(output.token_ids)
    logps = [place[token].logprob for token, place in zip(tokens, output.logprobs, strict=True)]
    return Completion(tokens, logps, bool(tokens) and tokens[-1] in eos_ids)
