"""Stage: one table of all policies."""

import json

from models.comparison import COLUMNS, cell
from models.configs.evaluation import ComparisonConfig
from tasks import tracking
from tasks.home import home
from tasks.plan import current_plan
from tasks.stage import StageContext, stage
from tasks.store import Artifact, Store


@stage(kind="report", runs="models.comparison:compare", inline=True)
def comparison(config: ComparisonConfig, evaluations: dict[str, Artifact], *, seed: int, context: StageContext) -> Artifact:
    """Comparison: one row a policy on the same held-out prompts, with paired bootstrap intervals."""
    return context.run(config, seed, evaluations=evaluations)


def publish(report: Artifact) -> None:
    """Show a comparison's table in Prefect and MLflow, whether it was computed now or before."""
    if current_plan() is not None:
        return
    content = json.loads((Store(home() / "store").path(report) / "comparison.json").read_text(encoding="utf-8"))
    rows = [{COLUMNS[name]: cell(value) for name, value in row.items()} for row in content["rows"]]
    pipeline = tracking.current_pipeline()
    if pipeline is not None:
        pipeline.table(rows, content["markdown"], "comparison")
