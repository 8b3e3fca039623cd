"""Stage: labels given by people."""

from models.configs.labelling import LabelReportConfig
from tasks.stage import StageContext, stage
from tasks.store import Artifact


@stage(kind="judgements", runs="data.labelling.snapshot:snapshot", inline=True)
def people_labels(
    config: LabelReportConfig, candidates: Artifact, labels: Artifact, *, seed: int, context: StageContext
) -> Artifact:
    """Labels of people as they stood when enough were in, as judgements, with the report on how far people agree."""
    return context.run(config, seed, candidates=candidates, labels=labels)
