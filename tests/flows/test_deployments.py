"""prefect.yaml names flows that exist, by module path, and their run forms can be filled in."""

from pathlib import Path

import pytest
import yaml
from prefect.flows import load_flow_from_entrypoint
from prefect.utilities.callables import parameter_schema

from flows import recipes

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENTS = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda deployment: deployment["name"])
def test_a_deployment_is_loaded_from_a_module(deployment):
    assert ".py" not in deployment["entrypoint"] and ":" not in deployment["entrypoint"]
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert flow.fn.__module__ == deployment["entrypoint"].rpartition(".")[0]


@pytest.mark.parametrize("name", recipes.known_flows())
def test_the_run_form_has_no_unions(name):
    """Prefect's form keeps the keys of the member that was chosen before, and the server refuses them."""
    flow = recipes.flow_of(recipes.Recipe(name=name, flow=name))
    schema = parameter_schema(flow).model_dump()
    assert list(unions(schema, "")) == []
    assert list(undescribed(schema["definitions"])) == []


def unions(node, path):
    if isinstance(node, dict):
        if "anyOf" in node or "oneOf" in node:
            yield path
        for key, value in node.items():
            yield from unions(value, f"{path}/{key}")
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from unions(value, f"{path}/{number}")


def undescribed(definitions):
    for name, model in definitions.items():
        yield from (f"{name}.{field}" for field, schema in model.get("properties", {}).items() if not schema.get("description"))


@pytest.mark.parametrize("name", sorted(recipes.known()))
def test_every_packaged_recipe_is_valid_and_described(name):
    recipe = recipes.load(name)
    _, config = recipes.configure(recipe)
    assert recipe.description and "seed" in type(config).model_fields
