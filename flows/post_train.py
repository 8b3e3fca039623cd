"""A recipe with a few things changed: the small form, for a run that is started in the browser.

recipe -> its flow, with the base model, the data, the method and single settings of the form
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_origin

import yaml
from prefect import flow
from prefect.logging import get_run_logger
from pydantic import BaseModel, Field, StringConstraints

from flows import recipes
from flows.forms import FormConfig
from models.configs.base import StageConfig
from tasks import registry
from tasks.plan import current_plan
from tasks.store import Artifact

RecipeName = Literal[
    "compare",
    "constitutional",
    "constitutional-tiny",
    "curation",
    "decoding",
    "decoding-tiny",
    "deepseek-r1",
    "evaluation",
    "gsm8k",
    "hh-rlhf",
    "instructgpt",
    "judge-accuracy",
    "llama2",
    "people",
    "quickstart",
    "r1-zero",
    "retrain",
    "retrain-tiny",
    "tiny",
    "tulu3",
]


class BaseModelChoice(StageConfig):
    """Another base model than the recipe's."""

    kind: Literal["recipe", "packaged", "hub", "folder", "scratch"] = Field(
        default="recipe", description="Where the model comes from; recipe: the one that the recipe names."
    )
    name: str = Field(default="", description="Packaged name, hub id, or path of a folder; not read for recipe and scratch.")


class DataChoice(StageConfig):
    """Other data than the recipe's."""

    kind: Literal["recipe", "reasoning_gym", "hub", "file"] = Field(
        default="recipe", description="Where rows come from; recipe: the sources that the recipe names."
    )
    name: str = Field(default="", description="Task, hub data set, or path of a json, jsonl, csv or parquet file; not read for recipe.")


class PostTrainConfig(FormConfig):
    """What to run, and what to change in it."""

    recipe: RecipeName = Field(default="quickstart", description="What to run; `posttrain recipes` says what each does.")
    base_model: BaseModelChoice = Field(default_factory=BaseModelChoice, description="The model that everything starts from.")
    data: DataChoice = Field(default_factory=DataChoice, description="The data; the sizes of its tables stay those of the recipe.")
    method: Literal["recipe", "rejection_sampling", "ppo", "grpo", "dpo"] = Field(
        default="recipe", description="Train with this method alone; recipe: with all that the recipe has."
    )
    seed: int = Field(default=0, ge=0, description="Seed of every stage.")
    settings: list[Annotated[str, StringConstraints(pattern=r"^\s*[\w.-]+\s*=")]] = Field(
        default_factory=list,
        description="Single values of the recipe's config as path=value, such as dpo.beta=0.2; `posttrain recipes NAME` lists the paths.",
    )


@flow(name="post_train")
def post_train(config: PostTrainConfig) -> Artifact | None:
    """Run a recipe with what the form changes in it.

    Args:
        config: the recipe, and what to change in it.
    """
    recipe = recipes.load(config.recipe)
    inner, settings = recipes.configure(recipe, changes(config, recipes.config_class(recipes.flow_of(recipe))))
    if current_plan() is None:
        get_run_logger().info("Recipe %s with %s", recipe.name, ", ".join(changes(config, type(settings))))
    with registry.recording(recipe.name, settings, config.seed):
        return inner.fn(settings)


def changes(config: PostTrainConfig, model: type[BaseModel]) -> list[str]:
    """What the form changes, as `--set` of the command line takes it.

    model: the config of the recipe's flow.

    Raises:
        ValueError: the recipe has nothing of the kind to change, or a name is missing.
    """
    return [*_changes(config, model), *config.settings]


def _changes(config: PostTrainConfig, model: type[BaseModel]) -> Iterator[str]:
    yield f"seed={config.seed}"
    if config.base_model.kind != "recipe":
        _require(config, model, "base_model", config.base_model.kind)
        yield from (f"base_model.{name}={_written(value)}" for name, value in _named(config, "base_model", "scratch").items())
    if config.data.kind != "recipe":
        _require(config, model, "curate", config.data.kind)
        yield f"curate.sources={_written([_named(config, 'data')])}"
    if config.method != "recipe":
        _require(config, model, "methods", config.method)
        several = get_origin(model.model_fields["methods"].annotation) is list
        yield f"methods={_written([config.method] if several else config.method)}"


def _named(config: PostTrainConfig, field: str, *nameless: str) -> dict[str, Any]:
    choice = getattr(config, field)
    if choice.kind in nameless:
        return {"kind": choice.kind}
    if not choice.name:
        raise ValueError(f"{field}.kind is {choice.kind!r} and {field}.name is empty: name it, or choose recipe")
    return {"kind": choice.kind, "name": choice.name}


def _require(config: PostTrainConfig, model: type[BaseModel], field: str, value: str) -> None:
    if field not in model.model_fields:
        raise ValueError(f"the recipe {config.recipe} has no {field}, and the form says {value!r}: choose recipe there, or another recipe")


def _written(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=1_000_000).removesuffix("...\n").strip()
