"""The papers' recipes as flows: each runs from end to end on the model made from scratch, its stages in the paper's order."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import recipes
from flows.recipes import Recipe
from tasks import process, registry

TINY: dict[str, Any] = recipes.load("tiny").config
R1: dict[str, Any] = recipes.load("deepseek-r1").config
SHORT = {"iterations": 1, "prompts_per_iteration": 4, "samples_per_prompt": 4, "sampling": {"max_tokens": 6}}
LEARN = {"batch_size": 16, "max_updates": 2}
PIECES: dict[str, Any] = {
    "base_model": {"kind": "scratch", "dtype": "float32", "scratch": {"hidden_size": 32, "intermediate_size": 64, "layers": 2}},
    "curate": TINY["curate"],
    "evaluate": {"samples_per_prompt": 2, "greedy": False, "prompts": 8, "sampling": {"max_tokens": 6}},
    "sft": TINY["sft"],
    "cold_start": TINY["sft"],
    "preferences": TINY["preferences"],
    "reward_model": LEARN,
    "rejection_sampling": LEARN,
    "dpo": LEARN,
    "ppo": SHORT,
    "grpo": SHORT,
    "reasoning": {**SHORT, **{key: R1["reasoning"][key] for key in ("reward", "rewards")}},
    "alignment": {**SHORT, **{key: R1["alignment"][key] for key in ("reward", "rewards")}},
}
# Every stage of a flow in its order, and the stage whose model it starts from.
STAGES = {
    "instructgpt": {"sft": "base_model", "collect_preferences": "sft", "reward_model": "sft", "ppo": "sft"},
    "llama2": {
        "sft": "base_model",
        "collect_preferences[round 1]": "sft",
        "reward_model[round 1]": "sft",
        "rejection_sampling[round 1]": "sft",
        "collect_preferences[round 2]": "rejection_sampling[round 1]",
        "reward_model[round 2]": "rejection_sampling[round 1]",
        "rejection_sampling[round 2]": "rejection_sampling[round 1]",
        "ppo": "rejection_sampling[round 2]",
    },
    "tulu3": {"sft": "base_model", "collect_preferences": "sft", "dpo": "sft", "grpo": "dpo"},
    "r1_zero": {"grpo": "base_model"},
    "deepseek_r1": {
        "sft": "base_model",
        "grpo[reasoning]": "sft",
        "collect_preferences": "grpo[reasoning]",
        "reward_model": "grpo[reasoning]",
        "rejection_sampling": "base_model",
        "grpo[alignment]": "rejection_sampling",
    },
}
POLICIES = {
    "instructgpt": ["base", "sft", "ppo"],
    "llama2": ["base", "sft", "round 1", "round 2", "ppo"],
    "tulu3": ["base", "sft", "dpo", "grpo"],
    "r1_zero": ["base", "grpo"],
    "deepseek_r1": ["base", "cold_start", "reasoning", "rejection_sampling", "alignment"],
}


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One output folder for all flows: what two of them share is computed once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("recipes")
        patch.setenv("POSTTRAIN_HOME", str(folder))
        patch.setenv("POSTTRAIN_THREADS", "1")
        yield folder
    process.close_zygote()


@pytest.mark.usefixtures("prefect_api")
@pytest.mark.parametrize("name", STAGES)
def test_the_flow_runs_in_the_order_of_its_paper_and_judges_every_policy(name: str, shared_home: Path) -> None:
    flow, _ = recipes.configure(Recipe(name=name, flow=name))
    fields = recipes.config_class(flow).model_fields
    flow, config = recipes.configure(Recipe(name=name, flow=name, config={key: piece for key, piece in PIECES.items() if key in fields}))
    flow(config)
    record = registry.find(name)
    assert list(record.stages) == [
        *("base_model", "curate"),
        *STAGES[name],
        *(["evaluate_reward"] if "reward_model" in fields else []),
        *(f"evaluate[{policy}]" for policy in POLICIES[name]),
        *("behaviour", "comparison"),
    ]
    digest = record.stages["comparison"].artifact.digest  # type: ignore[union-attr]
    table = json.loads((shared_home / "store" / "objects" / digest[:2] / digest / "comparison.json").read_text())
    assert [row["policy"] for row in table["rows"]] == POLICIES[name]
    for label, parent in STAGES[name].items():
        inputs = json.loads((shared_home / "store" / "keydocs" / f"{record.stages[label].key}.json").read_text())["inputs"]
        starts = [inputs[name] for name in ("policy", "base") if name in inputs] or list(inputs["policies"].values())
        assert [start["digest"] for start in starts] == [record.stages[parent].artifact.digest], label  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["instructgpt", "llama2", "tulu3", "deepseek-r1"])
def test_the_recipe_trains_on_the_data_of_the_quickstart(name: str) -> None:
    recipe, quickstart = recipes.load(name), recipes.load("quickstart")
    assert recipe.flow.replace("_", "-") == name
    assert recipe.config["curate"]["sources"] == quickstart.config["curate"]["sources"]
    assert recipe.config["base_model"] == quickstart.config["base_model"]
