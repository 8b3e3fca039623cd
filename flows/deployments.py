"""The deployments of prefect.yaml, which `posttrain serve` and `prefect deploy` both register.

A deployment is a recipe, with its values in the run form; a flow without a recipe has one too. What a recipe says is filled in by a build
step of prefect.yaml, {{ recipes.<name>.description }} and {{ recipes.<name>.config }}: a recipe is written down once.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.client.schemas.schedules import construct_schedule
from prefect.deployments.runner import RunnerDeployment
from prefect.events import DeploymentTriggerTypes
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.templating import apply_values
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from flows import recipes
from flows.faults import did_you_mean
from flows.forms import folded
from tasks.home import CHECKOUT

if TYPE_CHECKING:
    from prefect import Flow

FILE = CHECKOUT / "prefect.yaml"
TIMES = ("cron", "interval", "rrule", "anchor_date", "timezone")


class Limit(BaseModel):
    """How many runs of a deployment go on at a time, and what becomes of one more."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    limit: int = 1
    collision_strategy: Literal["ENQUEUE", "CANCEL_NEW"] = "ENQUEUE"


class Deployment(BaseModel):
    """One entry of prefect.yaml. Its work pool is for `prefect deploy`: `posttrain serve` runs without one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    entrypoint: str
    description: str = ""
    parameters: dict[str, Any] = {}
    tags: list[str] = []
    concurrency_limit: Limit = Limit()
    schedules: list[dict[str, Any]] = []
    triggers: list[dict[str, Any]] = []
    paused: bool | None = None  # None leaves it as it is on the server
    work_pool: dict[str, Any] = Field(default={}, exclude=True)

    def loaded(self) -> Flow[..., Any]:
        """The flow; imports its module."""
        module, _, function = self.entrypoint.rpartition(".")
        return getattr(importlib.import_module(module), function)

    def for_serving(self) -> RunnerDeployment:
        """The deployment as the process that registers it runs it."""
        made = RunnerDeployment.from_flow(
            self.loaded(),
            name=self.name,
            parameters=self.parameters,
            description=self.description,
            tags=self.tags,
            paused=self.paused,
            schedules=[_schedule(entry) for entry in self.schedules],
            triggers=[_trigger(entry, f"{self.name}__automation_{number}") for number, entry in enumerate(self.triggers, 1)],
            concurrency_limit=ConcurrencyLimitConfig.model_validate(self.concurrency_limit.model_dump()),
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        made.work_pool_name = made.work_queue_name = None  # named, so that a pool that `prefect deploy` has set is taken away
        return made


def _schedule(entry: dict[str, Any]) -> DeploymentScheduleCreate:
    when = construct_schedule(**{name: entry[name] for name in TIMES if name in entry})
    return DeploymentScheduleCreate(schedule=when, **{name: value for name, value in entry.items() if name not in TIMES})


def _trigger(entry: dict[str, Any], name: str) -> DeploymentTriggerTypes:
    return TypeAdapter(DeploymentTriggerTypes).validate_python({"name": name, **entry})


# prefect.yaml


def deployments() -> list[Deployment]:
    """The entries of prefect.yaml, filled in."""
    return filled(yaml.safe_load(FILE.read_text(encoding="utf-8"))["deployments"])


def filled(listed: list[dict[str, Any]]) -> list[Deployment]:
    """Entries of prefect.yaml with what the build step knows."""
    triggers = [entry.pop("triggers", []) for entry in listed]  # they have templates of their own, which an event fills in
    entries = apply_values(listed, {"recipes": recipe_values()})
    return [Deployment.model_validate({**entry, "triggers": own}) for entry, own in zip(entries, triggers, strict=True)]


@functools.cache
def recipe_values() -> dict[str, Any]:
    """The build step of prefect.yaml: description of every packaged recipe, and its config as the form shows it, by its name."""
    return {name: {"description": recipe.description, "config": _shown(recipe)} for name, recipe in _packaged().items()}


def _packaged() -> dict[str, recipes.Recipe]:
    return {name: recipes.load(name) for name in recipes.known()}


def _shown(recipe: recipes.Recipe) -> dict[str, Any]:
    return folded(recipes.config_class(recipes.flow_of(recipe)), recipe.config)


# Choosing


def chosen(names: Iterable[str]) -> list[Deployment]:
    """Those of that name, in any order; a path is a recipe of the user's own. Without names all of prefect.yaml.

    Raises:
        ValueError: there is no deployment of that name, or the recipe cannot be used.
    """
    wanted = list(dict.fromkeys(names))
    if not wanted:
        return deployments()
    if all(_is_file(name) for name in wanted):
        return [of_file(name) for name in wanted]
    known = {deployment.name: deployment for deployment in deployments()}
    unknown = next((name for name in wanted if name not in known and not _is_file(name)), None)
    if unknown is not None:
        raise ValueError(f"There is no deployment {unknown!r}{did_you_mean(unknown, known) or '.'} Deployments: {', '.join(known)}.")
    return [known[name] if name in known else of_file(name) for name in wanted]


def _is_file(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml")


def of_file(path: str) -> Deployment:
    """The deployment of a recipe that is not packaged, named after its file."""
    recipe = recipes.load(path)
    recipes.configure(recipe)
    flow = recipes.flow_of(recipe)
    return Deployment(
        name=recipe.name,
        entrypoint=f"{flow.fn.__module__}.{flow.fn.__name__}",
        description=recipe.description,
        parameters={"config": _shown(recipe)},
        tags=["posttrain"],
    )
