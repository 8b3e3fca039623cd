"""How flows collect preferences: people asked between two stages, writers by name, and a reward model as judge."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data.judgements import Candidates, Judgement
from data.records import Preference, Ranking
from data.tables import read_table, write_table
from flows import recipes
from flows.preferences import prefer
from flows.recipes import Recipe
from models.configs.preferences import PreferencesConfig
from tasks import process, registry
from tasks.home import home
from tasks.plan import planning
from tasks.store import Artifact, Store

TINY: dict[str, Any] = recipes.load("tiny").config
BASE = {"kind": "scratch", "dtype": "float32", "scratch": {"hidden_size": 32, "intermediate_size": 64, "layers": 2}}


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One output folder for both flows: the base model is made once."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("preferring")
        patch.setenv("POSTTRAIN_HOME", str(folder))
        patch.setenv("POSTTRAIN_THREADS", "1")
        yield folder
    process.close_zygote()


def artifact(kind: str, digest: str = "0" * 64) -> Artifact:
    return Artifact(kind=kind, digest=digest, size_bytes=1, n_files=1)


def inputs(record: registry.RunRecord, label: str) -> dict[str, Any]:
    return json.loads((home() / "store" / "keydocs" / f"{record.stages[label].key}.json").read_text())["inputs"]


POLICIES = {"sft": artifact("policy", "1" * 64), "base": artifact("policy", "2" * 64)}
DATA = artifact("dataset", "3" * 64)


def planned(settings: dict[str, Any], **asked: Any) -> list[Any]:
    with planning() as plan:
        prefer(PreferencesConfig.model_validate(settings), POLICIES, DATA, seed=0, **asked)
    return plan.entries


@pytest.mark.usefixtures("home")
def test_without_people_it_is_one_stage_that_sees_the_policies_that_write():
    (entry,) = planned({})
    assert entry.label == "collect_preferences" and entry.inputs["policies"] == {"sft": POLICIES["sft"]}
    assert [writer.policy for writer in entry.config.writers] == ["sft"]
    (both,) = planned({"writers": [{}, {"policy": "base"}]}, name="round 1")
    assert both.label == "collect_preferences[round 1]" and both.inputs["policies"] == POLICIES
    with pytest.raises(ValueError, match="names the policy 'dpo', and this flow has sft, base"):
        planned({"writers": [{"policy": "dpo"}]})


@pytest.mark.usefixtures("home")
def test_people_are_asked_between_two_stages():
    with pytest.raises(ValueError, match="a judge is people, and this flow does not ask any"):
        planned({"judges": [{"kind": "people"}]})
    asked: list[Any] = []
    labels = artifact("judgements", "4" * 64)
    sampling, collecting = planned({"judges": [{"kind": "people"}]}, ask_people=lambda c: asked.append(c) or labels)
    assert (sampling.label, collecting.label) == ("sample_candidates", "collect_preferences")
    assert [candidates.kind for candidates in asked] == ["candidates"] and collecting.inputs["labels"] is labels
    assert collecting.inputs["policies"] == {} and collecting.inputs["candidates"] is asked[0]


@pytest.mark.usefixtures("home")
def test_what_judges_do_with_answers_does_not_sample_anew():
    settings = {"judges": [{"kind": "people"}]}
    keys = {
        planned(settings | other, ask_people=lambda c: artifact("judgements"))[0].key
        for other in ({}, {"margin_better": 2.0}, {"ties": "keep"}, {"test_share": 0.5})
    }
    assert len(keys) == 1


@pytest.mark.usefixtures("prefect_api")
def test_labels_of_people_become_preferences_in_the_same_run(shared_home: Path):
    """Whoever is asked prefers the first text in the alphabet, and says so in Judgement records."""
    from prefect import flow

    from data.configs import CurateConfig
    from models.configs.base_model import BaseModelConfig
    from tasks.base_model import base_model
    from tasks.curate import curate

    def ask(candidates: Artifact) -> Artifact:
        store = Store(home() / "store")
        rows = read_table(store.path(candidates) / "candidates.parquet", Candidates)
        said = [
            Judgement(c.id, c.source, "ann", c.prompt, c.completions, tuple(int(t != min(c.completions)) for t in c.completions))
            for c in rows
        ]
        folder = shared_home / "labels"
        folder.mkdir()
        write_table(folder / "judgements.parquet", said, Judgement)
        return store.put(folder, "judgements", {})

    @flow
    def labelled() -> Artifact:
        base = base_model(BaseModelConfig.model_validate(BASE), seed=0)
        data = curate(CurateConfig.model_validate(TINY["curate"]), base, seed=0)
        config = PreferencesConfig.model_validate(
            TINY["preferences"] | {"judges": [{"kind": "people"}, {}], "prompts": 8, "test_share": 0.0}
        )
        return prefer(config, {"base": base}, data, seed=0, ask_people=ask)

    folder = Store(home() / "store").path(labelled())
    rankings = read_table(folder / "rankings.parquet", Ranking)
    assert len(rankings) == 8
    pairs = read_table(folder / "preferences.parquet", Preference)
    assert pairs and all(pair.chosen == min(r.completions) for pair in pairs for r in rankings if r.prompt == pair.prompt)


@pytest.mark.usefixtures("prefect_api")
def test_a_reward_model_of_given_pairs_judges_what_the_model_writes(shared_home: Path, tmp_path: Path):
    """preference_tuning with collect: reward model on the given pairs, its view of fresh answers, and both learners on that."""
    lines = [{"prompt": f"{i} + {i}?", "chosen": f"it is {2 * i}", "rejected": f"no idea {i}"} for i in range(48)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    learn = {"batch_size": 8, "max_updates": 1}
    config = {
        "base_model": BASE,
        "curate": {
            "sources": [{"kind": "file", "name": str(tmp_path / "pairs.jsonl")}],
            **{"demonstrations": 0, "prompts": 16, "preferences": 16, "test_prompts": 8},
        },
        "collect": True,
        "preferences": {
            "samples_per_prompt": 2,
            "sampling": {"max_tokens": 6},
            "judges": [{"kind": "reward_model"}, {"kind": "dataset"}],
            "combine": "share",
        },
        "reward_model": learn,
        "dpo": learn,
        "evaluate": {"judge": "reward_model", "greedy": False, "prompts": 4, "sampling": {"max_tokens": 6}},
    }
    flow, settings = recipes.configure(Recipe(name="collecting", flow="preference_tuning", config=config))
    flow(settings)
    record = registry.find("preference_tuning")
    assert list(record.stages)[2:6] == ["reward_model[judge]", "collect_preferences", "reward_model", "dpo"]
    digests = {label: stage.artifact.digest for label, stage in record.stages.items() if stage.artifact}
    assert inputs(record, "collect_preferences")["reward"]["digest"] == digests["reward_model[judge]"]
    assert {inputs(record, label)["preferences"]["digest"] for label in ("reward_model", "dpo")} == {digests["collect_preferences"]}
    said = read_table(Store(home() / "store").folder(digests["collect_preferences"]) / "judgements.parquet", Judgement)
    assert sum(j.judge == "reward_model" for j in said) == 16 == sum(j.judge == "dataset" for j in said)
