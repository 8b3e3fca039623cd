"""The recipe that compares every method: each of its variants runs on the model made from scratch and has a row."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import recipes
from flows.recipes import Recipe
from tasks import process, registry

FULL: dict[str, Any] = recipes.load("compare").config
TINY: dict[str, Any] = recipes.load("tiny").config
SHORT = {"sampling": {"max_tokens": 6}, "micro_batch_tokens": 1024, "optim": {"learning_rate": 1e-4}}
OFFLINE = {"batch_size": 16, "max_updates": 1, "micro_batch_tokens": 1024, "optim": {"learning_rate": 1e-4}}
ROUND = {**SHORT, "iterations": 1, "prompts_per_iteration": 4, "samples_per_prompt": 2}
# What makes a family small; what tells its variants apart stays as the recipe has it.
SIZES: dict[str, dict[str, Any]] = {
    "rejection_sampling": {**OFFLINE, "min_score": -1.0},
    "online_rejection_sampling": {**SHORT, "rounds": 1, "prompts_per_round": 4, "samples_per_prompt": 2, "min_score": -1.0},
    "reinforce": ROUND,
    "actor_critic": ROUND,
    "ppo": ROUND,
    "grpo": ROUND,
    "dpo": OFFLINE,
    "kwise_dpo": OFFLINE,
    "kto": OFFLINE,
    "online_dpo": ROUND,
    "nash_md": ROUND,
}


def small() -> dict[str, Any]:
    """The recipe on the tiny model and its data."""
    families = {family: {name: {**settings, **SIZES[family]} for name, settings in FULL[family].items()} for family in SIZES}
    return {
        "base_model": {"kind": "scratch", "dtype": "float32", "scratch": {"hidden_size": 32, "intermediate_size": 64, "layers": 2}},
        "curate": TINY["curate"],
        "sft": TINY["sft"],
        "preferences": {**TINY["preferences"], "judges": [{"kind": "callable", "callable": "even_letters:score"}]},
        "reward_model": OFFLINE,
        "preference_model": OFFLINE,
        "evaluate": {"greedy": False, "prompts": 4, "sampling": {"max_tokens": 6}},
        **families,
    }


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path))
    monkeypatch.setenv("POSTTRAIN_THREADS", "1")
    # A judge that calls about half of an untrained model's answers good: KTO needs labels of both kinds.
    (tmp_path / "even_letters.py").write_text("def score(prompt, text):\n    return float(sum(map(ord, text)) % 2 == 0)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    process.close_zygote()
    yield tmp_path
    process.close_zygote()


@pytest.mark.usefixtures("prefect_api")
def test_every_variant_of_every_family_is_trained_and_has_a_row(home: Path) -> None:
    flow, config = recipes.configure(Recipe(name="compare", flow="compare", config=small()))
    flow(config)
    record = registry.find("compare")
    names = [name for family in SIZES for name in FULL[family]]
    trained = {f"{family}[{name}]" for family in SIZES for name in FULL[family]}
    assert trained <= set(record.stages)
    assert "preference_model" in record.stages, "a variant of nash_md asks for it"
    digest = record.stages["comparison"].artifact.digest  # type: ignore[union-attr]
    table = json.loads((home / "store" / "objects" / digest[:2] / digest / "comparison.json").read_text())
    assert [row["policy"] for row in table["rows"]] == ["base", "sft", *names]


def test_no_two_variants_of_the_recipe_are_the_same() -> None:
    for family in SIZES:
        settings = [json.dumps(variant, sort_keys=True) for variant in FULL[family].values()]
        assert len(set(settings)) == len(settings), family


def test_what_recipes_share_with_the_quickstart_is_computed_once() -> None:
    quickstart = recipes.load("quickstart").config
    shared = ("base_model", "curate", "sft", "preferences", "reward_model")
    for name in shared:
        assert FULL[name] == quickstart[name], name
    assert (FULL["ppo"]["ppo"], FULL["dpo"]["dpo"]) == (quickstart["ppo"], quickstart["dpo"])
    decoding = recipes.load("decoding").config
    assert {name: decoding[name] for name in (*shared, "ppo", "dpo")} == {name: quickstart[name] for name in (*shared, "ppo", "dpo")}
