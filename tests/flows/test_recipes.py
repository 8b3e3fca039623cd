"""Recipes: reading, settings from the command line, and what the user is told when something is wrong."""

from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field

from flows import recipes
from flows.faults import describe
from flows.recipes import RecipeError, load, parse_yaml, with_settings


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Source(Strict):
    name: str
    rows: int = Field(0, ge=0)


class DPO(Strict):
    beta: float = Field(0.1, gt=0)
    loss: Literal["sigmoid", "ipo"] = "sigmoid"


class Config(Strict):
    dpo: DPO = DPO()
    maybe: DPO | None = None
    sources: list[Source] = []


def fault(config) -> str:
    with pytest.raises(ValueError) as caught:
        Config.model_validate(config)
    return describe(caught.value, Config)


def test_settings_replace_single_values_and_keep_the_rest():
    config = {"dpo": {"beta": 0.1, "loss": "ipo"}, "sources": [{"name": "gcd"}]}
    changed = with_settings(config, ["dpo.beta=0.2", "sources.0.rows=10", "seed=3", "new.deep.flag=true"])
    assert changed == {
        "dpo": {"beta": 0.2, "loss": "ipo"},
        "sources": [{"name": "gcd", "rows": 10}],
        "seed": 3,
        "new": {"deep": {"flag": True}},
    }
    assert config == {"dpo": {"beta": 0.1, "loss": "ipo"}, "sources": [{"name": "gcd"}]}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1.5", 1.5),
        ("3", 3),
        ("-3", -3),
        (".5", 0.5),
        ("true", True),
        ("off", "off"),
        ("no", "no"),
        ("none", "none"),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("'1'", "1"),
        ("", None),
        ("a=b", "a=b"),
    ],
)
def test_values_have_their_yaml_type(text, value):
    parsed = with_settings({}, [f"x={text}"])["x"]
    assert parsed == value and type(parsed) is type(value)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("dpo.beta", "path.to.field=value"),
        ("=1", "path.to.field=value"),
        ("dpo.beta=[1", "not a YAML value"),
        ("dpo.beta.x=1", "dpo.beta is 0.1, which has no fields"),
        ("sources.7.rows=1", "elements 0 to 0"),
        ("sources.x.rows=1", "sources.x is not an element of the list"),
    ],
)
def test_a_setting_that_cannot_be_applied_says_why(setting, words):
    with pytest.raises(RecipeError, match=words.replace(".", r"\.")):
        with_settings({"dpo": {"beta": 0.1}, "sources": [{"name": "gcd"}]}, [setting])


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"dpo": {"beta": -1}}, "  dpo.beta = -1: must be more than 0"),
        ({"dpo": {"beta": "high"}}, "  dpo.beta = 'high': must be a valid number, unable to parse string as a number"),
        ({"dpo": {"betta": 1}}, "  dpo.betta: there is no such field; did you mean 'beta'? (fields: beta, loss)"),
        ({"dpo": {"loss": "sigmoyd"}}, "  dpo.loss = 'sigmoyd': must be 'sigmoid' or 'ipo'; did you mean 'sigmoid'?"),
        ({"dop": {}}, "  dop: there is no such field; did you mean 'dpo'? (fields: dpo, maybe, sources)"),
        ({"sources": [{"rows": 1}]}, "  sources.0.name: is required"),
        ({"sources": [{"name": "gcd", "row": 1}]}, "  sources.0.row: there is no such field; did you mean 'rows'? (fields: name, rows)"),
        ({"maybe": {"betta": 1}}, "  maybe.betta: there is no such field; did you mean 'beta'? (fields: beta, loss)"),
        ({"sources": [{"name": "x", "rows": -2}]}, "  sources.0.rows = -2: must be at least 0"),
    ],
)
def test_a_wrong_config_names_path_value_and_what_is_allowed(config, line):
    assert fault(config) == line


def test_every_fault_is_shown():
    assert fault({"dpo": {"beta": -1, "loss": 3}}).count("\n") == 1


def test_an_unknown_recipe_lists_the_known_ones(monkeypatch, tmp_path):
    (tmp_path / "quickstart.yaml").write_text("flow: rlhf")
    monkeypatch.setattr(recipes, "FOLDER", tmp_path)
    with pytest.raises(RecipeError, match=r"no recipe 'quikstart'; did you mean 'quickstart'\? Recipes: quickstart;"):
        load("quikstart")
    with pytest.raises(RecipeError, match=r"no recipe file my\.yaml"):
        load("my.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flow: [", "not valid YAML"),
        ("- a", "must hold a mapping"),
        ("flow: rlhf\nconfg: {}", "confg: there is no such field; did you mean 'config'"),
        ("config: {}", "flow: is required"),
        ("flow: rlhf\nconfig: {a: 1, a: 2}", "'a' is there twice"),
    ],
)
def test_a_broken_recipe_file_says_what_is_wrong(tmp_path, text, words):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=words):
        load(str(path))


def test_an_unknown_flow_lists_the_known_ones():
    with pytest.raises(RecipeError, match="there is no flow 'rlhff'"):
        recipes.flow_of(recipes.Recipe(name="mine", flow="rlhff"))
    with pytest.raises(RecipeError, match="No module named 'nowhere'"):
        recipes.flow_of(recipes.Recipe(name="mine", flow="nowhere:f"))
    with pytest.raises(RecipeError, match="no Prefect flow named 'dumps'"):
        recipes.flow_of(recipes.Recipe(name="mine", flow="json:dumps"))


def test_the_loader_does_not_change_the_shared_one():
    import yaml

    assert parse_yaml("off") == "off"
    assert yaml.safe_load("off") is False
