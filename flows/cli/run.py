"""`posttrain run`: a recipe from its name to the table at the end."""

from __future__ import annotations

import signal
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pydantic import BaseModel

from flows import recipes
from flows.cli.session import prefect_session, require_mlflow, served_addresses
from flows.cli.terminal import complain, duration, err, out
from tasks.home import configure_environment

if TYPE_CHECKING:
    from prefect import Flow

    from flows.recipes import Recipe
    from tasks.plan import PlanEntry
    from tasks.registry import RunRecord

FAILED = 1
INTERRUPTED = 128 + signal.SIGINT
TERMINATED = 128 + signal.SIGTERM
CONTINUE = "The same command goes on from here: finished stages are kept, an unfinished one resumes."


def run(name: str, settings: Sequence[str], *, seed: int | None, dry_run: bool, verbose: bool) -> int:
    """Run a recipe, or plan it. Returns the exit code.

    Raises:
        ValueError: the recipe or a setting cannot be used.
    """
    recipe = recipes.load(name)
    wanted = [*settings, *([f"seed={seed}"] if seed is not None else [])]
    recipes.with_settings(recipe.config, wanted)  # what is wrong here need not wait for a server
    if dry_run:
        configure_environment()
        from flows.cli.plan import show_plan

        return show_plan(recipe, *recipes.configure(recipe, wanted))
    signal.signal(signal.SIGTERM, _terminated)
    with prefect_session() as wait_for_prefect:
        from tasks.outlook import expecting

        flow, config = recipes.configure(recipe, wanted)
        planned = _check_room(recipe, flow, config)
        with err.status("Starting Prefect"):
            wait_for_prefect()
            require_mlflow()
        with expecting(planned):
            return _execute(recipe, flow, config, verbose)


def _check_room(recipe: Recipe, flow: Flow[..., Any], config: BaseModel) -> list[PlanEntry]:
    """What the flow will call. Raises ValueError if memory or disk will not do, as far as that can be told beforehand."""
    from flows.cli.plan import need_of, plan_of, require_room

    try:
        entries = plan_of(recipe, flow, config)
    except ValueError:
        raise
    except Exception as error:  # a flow of the user's own may need real artifacts between its stages
        err.print(f"Not checked beforehand: the flow cannot be planned ({type(error).__name__}: {error}).", soft_wrap=True, markup=False)
        return []
    require_room(need_of(entries))
    return entries


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    # While a flow runs Prefect's handler is in place; it raises in the flow, lets the stage save, and then calls this one.
    raise SystemExit(TERMINATED)


def _execute(recipe: Recipe, flow: Flow[..., Any], config: BaseModel, verbose: bool) -> int:
    from flows.cli.progress import showing
    from tasks import registry

    begin = time.monotonic()
    live = None
    try:
        with registry.recording(recipe.name, config, getattr(config, "seed", None)) as live, showing(verbose) as display:
            display.say(f"Run {live.name}: {recipe.description or recipe.flow}")
            flow.with_options(flow_run_name=live.name)(config)
    except (KeyboardInterrupt, SystemExit) as signalled:
        complain(f"{live.name if live else recipe.name} was stopped. {CONTINUE}")
        return INTERRUPTED if isinstance(signalled, KeyboardInterrupt) else TERMINATED
    except Exception as error:
        if live is None:
            raise
        return _say_failure(live.record, error, verbose)
    _say_result(live.record, time.monotonic() - begin)
    return 0


def _say_failure(record: RunRecord, error: Exception, verbose: bool) -> int:
    """What went wrong, where the details are, and what to do."""
    from flows.cli.policies import store
    from tasks.process import StageProcessError
    from tasks.store import ArtifactInvalid

    expected = isinstance(error, ValueError | OSError | StageProcessError | ArtifactInvalid)
    if verbose or not expected:
        err.print("".join(traceback.format_exception(error)), markup=False, soft_wrap=True)
    complain(f"{record.name} failed: {error}" if expected else f"{record.name} failed: {type(error).__name__}: {error}")
    for label, stage in record.stages.items():
        log = store().root / "logs" / f"{stage.key}.log"
        if stage.outcome == "failed" and log.exists():
            err.print(f"The log of {label}: {log}", soft_wrap=True, markup=False)
    err.print(CONTINUE, soft_wrap=True)
    return FAILED


def _say_result(record: RunRecord, seconds: float) -> None:
    """The comparison, what the run did, and how to look at it."""
    from flows.cli.comparison import comparison_of

    table = comparison_of(record)
    if table is not None:
        out.print(table)
    counts = Counter("computed before" if stage.outcome == "hit" else stage.outcome for stage in record.stages.values())
    done = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
    out.print(f"\n[bold]{record.name}[/bold] finished in {duration(seconds)}: {done or 'no stage was called'}.", soft_wrap=True)
    for meaning, command in _next_commands(record):
        out.print(f"  {meaning:<38} {command}", soft_wrap=True, markup=False)


def _next_commands(record: RunRecord) -> list[tuple[str, str]]:
    """(what for, command or address) of ways to look at a finished run."""
    from tasks import registry, tracking

    served = served_addresses()
    if served is not None:
        look = [("This run in Prefect:", served.prefect), ("Its metrics in MLflow:", served.mlflow)]
    else:
        look = [("Prefect and MLflow in the browser:", "posttrain ui")]
        uri = tracking.tracking_uri()
        look += [("MLflow alone:", f"mlflow ui --backend-store-uri {uri}")] if uri.startswith("sqlite") else []
    policies = [label for label, artifact in record.artifacts().items() if artifact.kind == "policy"]
    talk = [("Talk to a policy:", f"posttrain chat {record.name}/{policies[-1]}")] if policies else []
    page = registry.report_path(record.name)
    look += [("The whole comparison as a page:", str(page))] if page.exists() else []
    return [*look, ("Why each stage was computed or not:", f"posttrain explain {record.name}"), *talk]
