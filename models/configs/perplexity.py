"""Settings of the suite that measures how well texts are predicted."""

from pydantic import Field, model_validator

from models.configs.base import StageConfig
from models.configs.suites import NAME, NAMED, RESAMPLES, RowsConfig


class PerplexityConfig(StageConfig):
    """Nats per token, perplexity and bits per byte of documents."""

    name: str = Field(default="perplexity", pattern=NAME, description=NAMED)
    source: RowsConfig = Field(description="Rows with a column text, one document each.")
    window_tokens: int = Field(default=1024, ge=2, description="Longest text read at once, in tokens; longer documents are cut.")
    context_tokens: int = Field(
        default=512, ge=1, description="Tokens before a cut that the next window reads again, to predict from; they are scored once."
    )
    resamples: int = Field(default=10_000, ge=100, description=RESAMPLES)
    chunk_documents: int = Field(default=64, ge=1, description="Documents between two saves.")
    micro_batch_tokens: int = Field(default=8192, ge=16, description="Tokens of a forward pass.")

    @model_validator(mode="after")
    def _consistent(self) -> "PerplexityConfig":
        if self.context_tokens >= self.window_tokens:
            raise ValueError(f"context_tokens {self.context_tokens} must be less than window_tokens {self.window_tokens}")
        return self
