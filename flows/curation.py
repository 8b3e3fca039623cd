"""Curation alone: a data set is cleaned, filtered, split and described, to be looked at before anything is trained on it.

base_model -> curate -> publish
"""

from prefect import flow
from pydantic import Field

from data.configs import CurateConfig
from flows.forms import FormConfig
from models.configs.base_model import BaseModelConfig
from tasks.base_model import base_model
from tasks.curate import curate, publish
from tasks.store import Artifact
from tasks.tracking import pipeline


class CurationConfig(FormConfig):
    """Settings of every stage of the flow ``curation``."""

    seed: int = Field(default=0, ge=0, description="Seed of the split, of blocks that draw, and of the rows shown.")
    base_model: BaseModelConfig = Field(default_factory=BaseModelConfig, description="Whose tokenizer and chat template measure the rows.")
    curate: CurateConfig = Field(default_factory=CurateConfig, description="Data: sources, blocks, splits, filters.")


@flow(name="curation")
def curation(config: CurationConfig) -> Artifact:
    """Curate a data set and publish its card and report.

    Args:
        config: settings of every stage.
    """
    with pipeline("curation", config):
        base = base_model(config.base_model, seed=config.seed)
        data = curate(config.curate, base, seed=config.seed)
        publish(data)
        return data
