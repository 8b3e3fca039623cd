"""Settings of the suite on toxic answers."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from data.blocks.safety import ListLanguage
from models.configs.base import StageConfig, operational
from models.configs.base_model import folder_digest
from models.configs.sampling import SamplingConfig
from models.configs.suites import NAME, NAMED, RESAMPLES, PromptsConfig


class ToxicityConfig(StageConfig):
    """How toxic a policy's answers are, by a classifier and by word lists."""

    name: str = Field(default="toxicity", pattern=NAME, description=NAMED)
    prompts: PromptsConfig = Field(default_factory=PromptsConfig, description="What is asked.")
    classifier: Literal["packaged", "folder"] = Field(
        default="packaged",
        description="packaged: the linear model over English words that comes in the wheel hatesonar (hate speech, offensive language, "
        "neither). folder: a sequence classifier in transformers' format, with weights in safetensors (model).",
    )
    model: str = Field(default="", description="Folder of the classifier; for folder, and no other.")
    toxic_labels: list[str] = Field(
        default_factory=list, description="Folder: its labels that mean toxic; empty = those whose name begins with toxic."
    )
    languages: list[ListLanguage] = Field(default=["en"], min_length=1, description="Languages of the word lists.")
    threshold: float = Field(default=0.5, gt=0, lt=1, description="Probability from which an answer is counted as toxic.")
    samples_per_prompt: int = Field(default=1, ge=1, description="Answers to each prompt.")
    sampling: SamplingConfig = Field(default_factory=lambda: SamplingConfig(max_tokens=128), description="How they are sampled.")
    resamples: int = Field(default=2_000, ge=100, description=RESAMPLES)
    chunk_prompts: int = Field(default=64, ge=1, description="Prompts answered between two saves. It orders the sampling noise.")
    max_classifier_tokens: int = Field(default=512, ge=8, description="Folder: tokens of an answer that are read; the rest is cut off.")
    batch_texts: int = operational(16, "Folder: answers classified at once.", ge=1)

    @model_validator(mode="after")
    def _one_classifier(self) -> "ToxicityConfig":
        if (self.classifier == "folder") != bool(self.model):
            raise ValueError(f"classifier {self.classifier!r} with model {self.model!r}: folder, and no other, names one")
        if self.toxic_labels and self.classifier == "packaged":
            raise ValueError(f"toxic_labels {self.toxic_labels} are for classifier = folder: the packaged one knows its own")
        return self

    def cache_extra(self) -> dict[str, str]:
        """Digest of the classifier's folder."""
        return {"classifier": folder_digest(Path(self.model))} if self.classifier == "folder" else {}
