"""Stage: one table of ways to decode."""

from typing import Any

from models.configs.guidance import DecodingComparisonConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.decoding_comparison:compare", inline=True)
def decoding_comparison(
    config: DecodingComparisonConfig, evaluations: dict[str, Artifact], seconds: dict[str, Any], *, context: StageContext
) -> Artifact:
    """Comparison of decoding: reward and minutes of every way to decode, on the same held-out prompts."""
    return context.run(config, evaluations=evaluations, seconds=seconds)
