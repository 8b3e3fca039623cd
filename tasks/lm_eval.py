"""Stage: tasks of lm-eval on one policy."""

from models.configs.lm_eval import LMEvalConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="report", runs="models.suites.lm_eval:measure")
def lm_eval(config: LMEvalConfig, policy: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """lm-eval: any task of EleutherAI's harness, through this package's sampler and log-probabilities."""
    return context.run(config, seed, policy=policy)
