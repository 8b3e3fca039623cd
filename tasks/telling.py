"""The ends of stages and runs: noted in the record of the run, told in its log, shown in Prefect and in the terminal."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from tasks import outlook, registry
from tasks.outlook import Outlook
from tasks.process import Progress, tell
from tasks.progress import Follower, show_run_end
from tasks.registry import Outcome, record_stage
from tasks.store import Artifact
from tasks.story import LONGEST_ERROR, StageStory, run_logger, tell_line
from tasks.tracked import PipelineRun, status_of
from tasks.wording import duration, one_line


def tell_end(
    story: StageStory,
    follower: Follower,
    key: str,
    outcome: Outcome,
    seconds: float,
    artifact: Artifact | None,
    error: BaseException | None = None,
) -> None:
    """Tell what became of a call of a stage.

    seconds: of the whole call.
    error: why there is no artifact.
    """
    record_stage(registry.current_run(), story.label, key, artifact, outcome, seconds)
    outlook.end(story.label, outcome, artifact)
    line, why = story.end(outcome, seconds, artifact, error)
    tell_line(run_logger(), line)
    tell(Progress(story.label, outcome, seconds=seconds, why=why))  # type: ignore[arg-type]
    follower.end(line, is_done=artifact is not None)


@contextlib.contextmanager
def told(pipeline: PipelineRun) -> Iterator[None]:
    """Follow a run, and say at its end in one line what it did. Inside another that is followed, nothing: its stages belong to that one."""
    with outlook.following(pipeline.pipeline) as view:
        if view is None:
            yield
            return
        how, why = "finished", []
        try:
            yield
        except BaseException as error:
            how = {"KILLED": "stopped", "SCHEDULED": "suspended"}.get(status_of(error), "failed")
            why = [one_line(f"{type(error).__name__}: {error}", LONGEST_ERROR)]
            raise
        finally:
            summary = _summary(view, pipeline, how)
            tell_line(run_logger(), ". ".join([summary, *why, *_places(pipeline)]))
            show_run_end(view, summary, is_done=how == "finished")


def _summary(view: Outlook, pipeline: PipelineRun, how: str) -> str:
    counts = Counter(view.outcomes.values())
    hits = counts.pop("hit", 0)
    parts = [_number(len(view.outcomes), "stage"), *(f"{number} {outcome}" for outcome, number in sorted(counts.items()))]
    done = ", ".join([*parts, *([_number(hits, "hit")] if hits else [])])
    return f"{_name(pipeline)} {how} after {duration(view.seconds)}: {done}"


def _number(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _name(pipeline: PipelineRun) -> str:
    live = registry.current_run()
    return live.name if live is not None else pipeline.name


def _places(pipeline: PipelineRun) -> list[str]:
    """Where what the run made can be seen."""
    name = _name(pipeline)
    tables = [f"Table: artifact {pipeline.tables[-1]} of this run"] if pipeline.tables else []
    page = registry.report_path(name)
    pages = [f"Page: {page}"] if page.exists() else []
    metrics = [f"MLflow: {pipeline.url}"] if pipeline.url else []
    return [*tables, *pages, *metrics, f"Why each stage was computed or not: posttrain explain {name}"]
