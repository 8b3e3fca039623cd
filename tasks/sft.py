"""Stage: supervised fine-tuning."""

from models.configs.sft import SFTConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.training.sft:train")
def sft(config: SFTConfig, base: Artifact, data: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Supervised fine-tuning: the base model imitates demonstrations."""
    return context.run(config, seed, base=base, data=data)
