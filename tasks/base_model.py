"""Stage: bring the base model in."""

from models.configs.base_model import BaseModelConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="policy", runs="models.base_model:prepare")
def base_model(config: BaseModelConfig, *, seed: int, context: StageContext) -> Artifact:
    """Base model: packaged, local folder, hub or scratch, in one format with its tokenizer and chat template."""
    return context.run(config, seed)
