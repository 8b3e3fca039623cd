"""Settings of labels given by people."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from data.labelling.records import Settings
from models.configs.base import StageConfig, operational


class LabelReportConfig(StageConfig):
    """The report on how far people agree."""

    resamples: int = Field(default=1000, ge=100, description="Bootstrap resamples of items behind each interval of agreement.")


class LabellingConfig(StageConfig):
    """What people are asked, how it is shared out among them, and how long a run waits for it."""

    labels: int = Field(
        default=0,
        ge=0,
        description="Labels after which the run goes on; 0: one for every set of candidates, and the further ones of those that overlap.",
    )
    overlap_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of the items that several people label, so that their agreement can be measured."
    )
    overlap_annotators: int = Field(default=2, ge=2, description="People who label each item that overlaps.")
    gold: str = Field(
        default="",
        description="File of items with a known answer (prompt, chosen, rejected; or prompt, completions, ranks) that test the annotators; "
        "empty: none.",
    )
    gold_share: float = Field(
        default=0.1, ge=0, lt=1, description="Share of the items shown that have a known answer, until an annotator has seen all of them."
    )
    guidelines: str = Field(
        default="",
        description="Text file with the guidelines that the page shows; empty: helpful, truthful, harmless, as InstructGPT has it.",
    )
    while_waiting: Literal["pause", "suspend"] = operational(
        "pause",
        "pause: the process stays and watches the labels itself. suspend: it ends and a worker starts it again; for runs of a deployment, "
        "and then the labelling page must know the Prefect API.",
    )
    patience_h: float = operational(720.0, "Hours that a run waits for labels before it fails.", gt=0)
    address: str = operational("http://127.0.0.1:4300", "Where the labelling page will be; only shown, in Prefect.")
    report: LabelReportConfig = Field(default_factory=LabelReportConfig, description="How the agreement of people is reported.")

    def settings(self, seed: int) -> Settings:
        """How the items are shared out.

        Raises:
            ValueError: the guidelines cannot be read.
        """
        return Settings(
            labels=self.labels,
            overlap_share=self.overlap_share,
            overlap_annotators=self.overlap_annotators,
            gold_share=self.gold_share if self.gold else 0.0,
            guidelines=self._guidelines_text(),
            seed=seed,
        )

    def _guidelines_text(self) -> str:
        if not self.guidelines:
            return ""
        try:
            return Path(self.guidelines).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"guidelines={self.guidelines!r} cannot be read as text: {error}") from error
