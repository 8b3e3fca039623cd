"""Run forms and deployments: what the form shows is what runs, and prefect.yaml is what `posttrain serve` registers."""

import json
from typing import Any, get_args

import pytest
import yaml
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import hydrate, validate
from pydantic import Field

from flows import deployments, post_train, recipes
from flows.decoding import DecodingConfig
from flows.forms import FormConfig, folded, unfolded
from models.configs.base import StageConfig
from tasks.home import CHECKOUT


class Inner(StageConfig):
    """Of a stage."""

    share: float = Field(default=0.5, gt=0, le=1, description="A share * of <all>.")
    words: list[str] = Field(default_factory=lambda: ["a"], min_length=1, description="Words.")


class Outer(FormConfig):
    """Of a flow."""

    late: int = Field(default=3, ge=1, description="A number.")
    stage: Inner = Field(default_factory=lambda: Inner(share=0.25), description="A stage.")
    must: str = Field(description="Given by everyone.")
    base_model: Inner = Field(default_factory=Inner, description="A small thing.")


def form(config: Outer) -> None: ...


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return parameter_schema(form).model_dump_for_openapi()


def test_a_field_says_its_default_and_its_limits(schema):
    outer, inner = (schema["definitions"][name]["properties"] for name in ("Outer", "Inner"))
    assert outer["late"]["description"] == "A number. Default 3, at least 1."
    assert inner["share"]["description"] == "A share \\* of &lt;all&gt;. Default 0.5, more than 0, at most 1."
    assert inner["words"]["description"].endswith("at least so many entries: 1.") and inner["words"]["default"] == ["a"]
    assert outer["must"]["description"] == "Given by everyone." and "default" not in outer["must"]
    assert outer["stage"]["default"]["share"] == 0.25  # of the flow, not of the stage's class


def test_what_must_be_given_comes_first_then_the_small_things_then_the_stages(schema):
    fields = schema["definitions"]["Outer"]["properties"]
    assert sorted(fields, key=lambda name: fields[name]["position"]) == ["must", "base_model", "late", "stage"]
    assert {name: field["title"] for name, field in fields.items()} == {name: name for name in fields}


def test_a_stage_is_a_box_that_says_what_the_flow_changes_in_it():
    shown = folded(Outer, {"must": "x", "base_model": {"words": ["b"]}})
    assert shown == {
        "must": "x",
        "base_model": {"words": ["b"]},
        "stage": {"__prefect_kind": "json", "value": '{"share": 0.25}'},
    }
    assert Outer.model_validate(shown) == Outer(must="x", base_model=Inner(words=["b"]))
    with pytest.raises(ValueError, match="Expecting"):
        unfolded({"stage": {"__prefect_kind": "json", "value": "{"}})


# Of the flows


@pytest.fixture(scope="module")
def listed() -> dict[str, deployments.Deployment]:
    return {deployment.name: deployment for deployment in deployments.deployments()}


@pytest.mark.parametrize("name", sorted(recipes.known()))
def test_the_form_of_a_recipe_runs_the_recipe(listed, name):
    flow, config = recipes.configure(recipes.load(name))
    deployment = listed[name]
    assert deployment.loaded() is flow and deployment.description == recipes.load(name).description
    sent = deployment.parameters["config"]
    assert type(config).model_validate(sent) == config  # of a schedule, which sends the boxes as they are
    read = hydrate({"config": sent})
    assert type(config).model_validate(read["config"]) == config
    known = parameter_schema(flow).model_dump_for_openapi()
    assert validate(deployment.parameters, known) == validate(read, known) == []


def test_a_box_that_leaves_the_mode_out_is_read_before_the_mode_is_filled_in():
    config = DecodingConfig.model_validate({"cards": {"__prefect_kind": "json", "value": '{"max_tries": 3}'}})
    assert (config.cards.mode, config.cards.max_tries) == ("cards", 3)


def test_every_flow_has_a_deployment_and_every_config_a_form(listed):
    flows = {deployment.entrypoint.rpartition(".")[2] for deployment in listed.values()}
    assert sorted(flows) == recipes.known_flows()
    configs = [recipes.config_class(deployment.loaded()) for deployment in listed.values()]
    assert [config.__name__ for config in configs if not issubclass(config, FormConfig)] == []


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": -1}, "config.seed"),
        ({"methods": ["dpoo"]}, "config.methods"),
        ({"sft": {"batch_size": 0}}, "config.sft"),
        ({"sft": {"batchsize": 8}}, "config.sft"),
        ({"base_model": {"dtype": "int8"}}, "config.base_model"),
        ({"sft": {"optim": {"learning_rate": 0}}}, "config.sft.optim"),
        ({"sft": {"__prefect_kind": "yaml", "value": "a: 1"}}, "config.sft"),
    ],
)
def test_a_wrong_value_is_refused_by_the_server(listed, change, field):
    deployment = listed["quickstart"]
    wrong = {"config": {**hydrate(deployment.parameters)["config"], **change}}
    faults = validate(wrong, parameter_schema(deployment.loaded()).model_dump_for_openapi())
    assert any(fault.json_path.startswith(f"$.{field}") for fault in faults)


def test_what_serve_registers_is_what_prefect_yaml_says(listed):
    entries = yaml.safe_load((CHECKOUT / "prefect.yaml").read_text())["deployments"]
    assert [entry["name"] for entry in entries] == list(listed)
    for entry in entries:
        made = listed[entry["name"]].for_serving()
        assert (made.entrypoint, made.tags) == (entry["entrypoint"], entry["tags"])
        assert made.concurrency_limit == entry["concurrency_limit"]["limit"]
        assert made.concurrency_options.collision_strategy == "ENQUEUE" and made.work_pool_name is None
        assert {"work_pool_name", "work_queue_name"} <= made.model_fields_set  # so that one set by `prefect deploy` is taken away
        assert "{{" not in json.dumps([made.description, made.parameters]) and made.description


def test_schedules_and_triggers_of_prefect_yaml_are_served():
    entry = {
        "name": "nightly",
        "entrypoint": "flows.curation.curation",
        "schedules": [{"cron": "0 3 * * *", "timezone": "Europe/Berlin", "slug": "night"}],
        "triggers": [{"type": "event", "expect": ["labels.enough"], "parameters": {"a": "{{ event.id }}"}}],
    }
    made = deployments.filled([entry])[0].for_serving()
    assert made.schedules is not None and made.schedules[0].schedule.timezone == "Europe/Berlin" and made.schedules[0].slug == "night"
    assert made.triggers[0].name == "nightly__automation_1" and made.triggers[0].parameters == {"a": "{{ event.id }}"}


def test_an_unknown_name_is_said_before_anything_is_registered():
    with pytest.raises(ValueError, match="no deployment 'quikstart'; did you mean 'quickstart'"):
        deployments.chosen(["tiny", "quikstart"])


# The small form


def test_the_small_form_names_every_recipe():
    assert list(get_args(post_train.RecipeName)) == sorted(recipes.known())


@pytest.mark.parametrize(
    ("form", "path", "value"),
    [
        ({"recipe": "tiny", "seed": 3}, "seed", 3),
        ({"recipe": "tiny", "method": "dpo"}, "methods", ["dpo"]),
        ({"recipe": "constitutional", "method": "ppo"}, "methods", "ppo"),
        ({"recipe": "tiny", "base_model": {"kind": "hub", "name": "a/b"}}, "base_model.name", "a/b"),
        ({"recipe": "quickstart", "base_model": {"kind": "scratch"}}, "base_model.kind", "scratch"),
        ({"recipe": "gsm8k", "data": {"kind": "file", "name": "x y: z.jsonl"}}, "curate.sources.0.name", "x y: z.jsonl"),
        ({"recipe": "tiny", "settings": ["seed=1", "sft.optim.learning_rate=1e-4"]}, "sft.optim.learning_rate", 1e-4),
        ({"recipe": "tiny", "data": {"kind": "reasoning_gym", "name": "gcd"}, "method": "ppo"}, "curate.demonstrations", 96),
    ],
)
def test_the_small_form_changes_a_recipe(form, path, value):
    chosen = post_train.PostTrainConfig.model_validate(form)
    recipe = recipes.load(chosen.recipe)
    settings = post_train.changes(chosen, recipes.config_class(recipes.flow_of(recipe)))
    found = recipes.configure(recipe, settings)[1].model_dump(mode="json")
    for name in path.split("."):
        found = found[int(name) if name.isdigit() else name]
    assert found == value


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"recipe": "gsm8k", "method": "dpo"}, "the recipe gsm8k has no methods, and the form says 'dpo'"),
        ({"recipe": "evaluation", "data": {"kind": "file", "name": "x"}}, "the recipe evaluation has no curate"),
        ({"recipe": "tiny", "base_model": {"kind": "hub"}}, "base_model.kind is 'hub' and base_model.name is empty"),
    ],
)
def test_what_the_recipe_does_not_have_is_refused(form, message):
    chosen = post_train.PostTrainConfig.model_validate(form)
    model = recipes.config_class(recipes.flow_of(recipes.load(chosen.recipe)))
    with pytest.raises(ValueError, match=message):
        post_train.changes(chosen, model)
