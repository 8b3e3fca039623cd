"""Stage: read, check and split data."""

from data.configs import CurateConfig
from tasks import tracking
from tasks.home import home
from tasks.plan import current_plan
from tasks.stage import StageContext, stage
from tasks.store import Artifact, Store


@stage(kind="dataset", runs="data.curation:curate", device=False, fan_out="data.curation:work_along")
def curate(config: CurateConfig, base: Artifact, *, seed: int, context: StageContext) -> Artifact:
    """Curation: usable rows of every source, split so that held-out prompts stay held out; the rest set aside with reasons."""
    return context.run(config, seed, base=base)


def publish(data: Artifact) -> None:
    """Show the data card in Prefect and MLflow, with the way to the report, whether the data was curated now or before."""
    pipeline = tracking.current_pipeline()
    if current_plan() is not None or pipeline is None:
        return
    folder = Store(home() / "store").path(data)
    card = (folder / "card.md").read_text(encoding="utf-8").split("\n---\n", 1)[1].strip()
    run = f"[MLflow run of this flow]({pipeline.url})" if pipeline.url else "MLflow run of this flow"
    where = f"The whole report, with rows to look at and the first training batch, is `report.html` of the stage `curate` in the {run}"
    pipeline.page(f"{card}\n\n## Report\n\n{where}; on this machine it is `{folder / 'report.html'}`.\n", "curation")
