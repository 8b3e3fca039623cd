"""Stage: one table of all policies."""

import json

from models.comparison import COLUMNS, columns_of, marked
from models.configs.evaluation import ComparisonConfig
from tasks import tracking
from tasks.home import home
from tasks.plan import current_plan
from tasks.report import publish_report
from tasks.stage import StageContext, stage
from tasks.store import Artifact, Store


@stage(kind="report", runs="models.comparison:compare", inline=True)
def comparison(
    config: ComparisonConfig,
    evaluations: dict[str, Artifact],
    suites: dict[str, dict[str, Artifact]] | None = None,
    behaviour: Artifact | None = None,
    overoptimisation: dict[str, Artifact] | None = None,
    reward_evaluation: Artifact | None = None,
    *,
    seed: int,
    context: StageContext,
) -> Artifact:
    """Comparison: one row a policy on the same held-out prompts, with paired bootstrap intervals, and what else was found out."""
    return context.run(
        config,
        seed,
        evaluations=evaluations,
        suites=suites,
        behaviour=behaviour,
        overoptimisation=overoptimisation,
        reward_evaluation=reward_evaluation,
    )


def publish(report: Artifact) -> None:
    """Write the page of the run, and show the table in Prefect and MLflow, whether the comparison was computed now or before."""
    if current_plan() is not None:
        return
    content = json.loads((Store(home() / "store").path(report) / "comparison.json").read_text(encoding="utf-8"))
    place = publish_report(content)
    columns = columns_of(content["rows"])
    rows = [{COLUMNS[name]: marked(row, name, content.get("gains")) for name in columns} for row in content["rows"]]
    pipeline = tracking.current_pipeline()
    if pipeline is not None:
        url = pipeline.url
        run = f"[MLflow run of this flow]({url})" if url else "MLflow run of this flow"
        page = f"[`report.html`]({url}/artifacts/report.html)" if url else "`report.html`"
        where = f"The whole report is {page} in the {run}; on this machine it is `{place}`."
        pipeline.table(rows, f"{content['markdown']}\n{where}\n", "comparison")
