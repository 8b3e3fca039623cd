"""Stage: read, check and split data."""

from data.configs import CurateConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="dataset", runs="data.curation:curate", device=False)
def curate(config: CurateConfig, base: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Curation: usable rows of every source, split so that held-out prompts stay held out; the rest set aside with reasons."""
    return context.run(config, seed, base=base)
