"""Settings of the suite of questions with given choices."""

from typing import Literal

from pydantic import Field, model_validator

from models.configs.base import StageConfig
from models.configs.suites import NAME, NAMED, RESAMPLES, RowsConfig

TEMPLATE = "Question: {question}\nAnswer:"


class MultipleChoiceConfig(StageConfig):
    """Which of the given choices a policy finds likeliest; truthfulness where several are true."""

    name: str = Field(default="multiple_choice", pattern=NAME, description=NAMED)
    source: RowsConfig = Field(
        description="Rows of question, choices and answer (from 0) or labels (0, 1), or TruthfulQA's mc1_targets and mc2_targets. On the "
        "hub: truthfulqa/truthful_qa, subset multiple_choice, split validation."
    )
    style: Literal["text", "truthfulqa", "chat"] = Field(
        default="text",
        description="How a question is put: as plain text, as plain text after the six questions and answers published with TruthfulQA, or "
        "as a user's turn of the chat template.",
    )
    template: str = Field(default=TEMPLATE, description="The plain text before a choice, for style text; {question} is filled in.")
    resamples: int = Field(default=10_000, ge=100, description=RESAMPLES)
    chunk_questions: int = Field(default=64, ge=1, description="Questions between two saves.")
    micro_batch_tokens: int = Field(default=8192, ge=16, description="Tokens of a forward pass.")

    @model_validator(mode="after")
    def _consistent(self) -> "MultipleChoiceConfig":
        if "{question}" not in self.template or self.template != self.template.rstrip():
            raise ValueError(f"template={self.template!r} must hold {{question}} and end without white space: a choice follows a space")
        if self.style != "text" and self.template != TEMPLATE:
            raise ValueError(f"template={self.template!r} is for style text, and style is {self.style}: leave it out")
        return self
