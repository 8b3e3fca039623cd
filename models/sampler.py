"""Samples from a policy on disk, by the sampler that its configuration asks for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from models.configs.sampling import SamplingConfig
from models.generation import Completion, generate
from models.notices import say_once
from models.sampling_backend import ENABLE, chosen_backend
from models.vllm_sampler import VllmSampler


class Sampler:
    """A policy, as it lies in a folder and as it is loaded. The engine of vllm, where it is meant, starts with the first batch."""

    def __init__(self, folder: Path, policy: PreTrainedModel) -> None:
        self.folder, self.policy = folder, policy
        self._engine: VllmSampler | None = None

    def __call__(self, prompts: Sequence[Sequence[int]], sampling: SamplingConfig, **given: Any) -> list[list[Completion]]:
        """As ``models.generation.generate`` or ``VllmSampler.generate``."""
        backend, why = chosen_backend(sampling.backend)
        if backend == "own":
            if sampling.backend == "auto":
                say_once(f"sampling by this project's own sampler, since {why}: for vllm, {ENABLE}")
            return generate(self.policy, prompts, sampling.model_copy(update={"backend": "own"}), **given)
        if self._engine is None:
            self._engine = VllmSampler(self.folder, self.policy, sampling)
        return self._engine.generate(prompts, sampling, **given)
