"""How completions are sampled."""

from pydantic import Field

from models.configs.base import StageConfig
from models.sampling_backend import Backend, chosen_backend


class SamplingConfig(StageConfig):
    """Decoding settings of the sampler."""

    temperature: float = Field(
        default=1.0, ge=0, le=10, description="Divides the logits; 1 samples from the policy itself, 0 takes the most likely token."
    )
    top_k: int = Field(default=0, ge=0, description="Sample among this many most likely tokens; 0 = all.")
    top_p: float = Field(
        default=1.0, gt=0, le=1, description="Sample among the most likely tokens that hold this share of the mass; 1 = all."
    )
    max_tokens: int = Field(default=64, ge=1, le=8192, description="Longest completion, in tokens, the end-of-turn token included.")
    max_rows: int = Field(
        default=256, ge=1, description="Completions generated at once. It orders the sampling noise, so it is part of the result."
    )

    backend: Backend = Field(
        default="own",
        description="Who samples: this project's sampler; vllm, on a GPU and from policies on disk only, so not in training; or auto: vllm "
        "where it is installed and there is a GPU.",
    )

    def cache_extra(self) -> dict[str, str]:
        """The sampler that is meant here, where that depends on the machine."""
        if self.backend == "own":
            return {}
        backend, why = chosen_backend(self.backend)
        return {"backend": why if backend == "vllm" else backend}

    @property
    def truncates(self) -> bool:
        """True where some tokens can never be sampled."""
        return self.top_k > 0 or self.top_p < 1
