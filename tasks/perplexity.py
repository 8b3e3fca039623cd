"""Stage: the suite that measures how well texts are predicted."""

from models.configs.perplexity import PerplexityConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.suites.perplexity:perplexity", fan_out="chunks")
def perplexity(config: PerplexityConfig, policy: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Perplexity: how well a policy predicts texts, in nats per token and bits per byte."""
    return context.run(config, seed, policy=policy)
