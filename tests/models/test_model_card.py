"""The model card, and what promotion reads from files."""

import json
from pathlib import Path
from typing import Any

import pytest

from data.measures import Suite, mean, rate, write_suite
from data.records import Demonstration, Message, Prompt, record_id
from data.tables import write_table
from models.configs.promotion import GateConfig
from models.evidence import (
    answer_scores,
    evaluation_quantities,
    evaluation_rows,
    findings_of,
    held_out_ids,
    suite_quantities,
    trained_prompts,
    training_tables,
    was_overoptimised,
)
from models.model_card import PACKAGED_LICENSES, CardContent, Made, card
from models.packaged import PACKAGED
from models.promotion import Evidence, Finding, Quantity, decide

HOSTILE = "<script>alert(1)</script> | ![x](http://e) `a`\n# top"


def answer(correct: bool, tokens: int = 3, **more: Any) -> dict[str, Any]:
    return {"text": "t", "n_tokens": tokens, "finished": True, "kl_nats": 0.5, "score": float(correct), "correct": correct, **more}


# Reading


def test_quantities_are_means_over_the_answers_to_a_prompt():
    rows = [
        {"id": "a", "sampled": [answer(True, reward=1.0), answer(False, 5, reward=2.0)], "greedy": answer(True)},
        {"id": "b", "sampled": [answer(False, reward=0.0), answer(False, reward=4.0)], "greedy": answer(False)},
    ]
    found = evaluation_quantities(rows)
    assert {name: dict(one.values) for name, one in found.items()} == {
        "accuracy": {"a": 0.5, "b": 0.0},
        "score": {"a": 0.5, "b": 0.0},
        "reward": {"a": 1.5, "b": 2.0},
        "kl_nats": {"a": 0.5, "b": 0.5},
        "completion_tokens": {"a": 4.0, "b": 3.0},
        "finished": {"a": 1.0, "b": 1.0},
        "accuracy_greedy": {"a": 1.0, "b": 0.0},
    }
    assert [name for name, one in found.items() if one.judged] == ["reward"]
    assert answer_scores(rows) == {"a": [1.0, 0.0], "b": [0.0, 0.0]}


def test_where_a_reward_model_is_the_judge_the_score_is_judged_too():
    rows = [{"id": "a", "sampled": [{"score": 1.0, "reward": 1.0, "n_tokens": 1, "finished": True, "kl_nats": 0.0}]}]
    assert [name for name, one in evaluation_quantities(rows).items() if one.judged] == ["score", "reward"]
    assert evaluation_quantities([]) == {}


@pytest.mark.parametrize("content", ["[]", '{"rows": 3}', "{"])
def test_a_file_that_is_no_evaluation_is_named(tmp_path: Path, content: str):
    (tmp_path / "evaluation.json").write_text(content)
    with pytest.raises(ValueError):
        evaluation_rows(tmp_path)


def test_measures_of_a_suite_have_its_name_before_theirs(tmp_path: Path):
    refused = rate("over_refusal", {"a": 1.0, "b": 0.0}, better="lower")
    write_suite(tmp_path, Suite("xstest", "safety", [refused, mean("length", {"a": 3.0}, seed=0, resamples=100, better="neither")]))
    name, found = suite_quantities(tmp_path)
    assert name == "xstest" and list(found) == ["xstest/over_refusal", "xstest/length"]
    own = found["xstest/over_refusal"]
    assert (dict(own.values), own.better, own.suite, own.kind, own.judged) == ({"a": 1.0, "b": 0.0}, "lower", "xstest", "safety", False)


def test_findings_are_those_of_the_policy(tmp_path: Path):
    finding = {"check": "length_bias", "severity": "hack", "message": "m", "evidence": {"slope": 2.0}}
    policies = {"dpo": {"measures": [], "findings": [finding]}, "ppo": {"measures": [], "findings": []}}
    (tmp_path / "behaviour.json").write_text(json.dumps({"baseline": "sft", "policies": policies}))
    assert findings_of(tmp_path, "dpo") == [Finding("length_bias", "hack", "m")]
    assert (findings_of(tmp_path, "ppo"), findings_of(tmp_path, "sft"), findings_of(tmp_path, "grpo")) == ([], [], None)


@pytest.mark.parametrize(("text", "found"), [('{"overoptimised": true}', True), ('{"overoptimised": false}', False)])
def test_over_optimisation_is_a_plain_yes_or_no(tmp_path: Path, text: str, found: bool):
    (tmp_path / "overoptimisation.json").write_text(text)
    assert was_overoptimised(tmp_path) is found
    (tmp_path / "overoptimisation.json").write_text('{"overoptimised": null}')
    with pytest.raises(ValueError, match="overoptimised=None, which is neither true nor false"):
        was_overoptimised(tmp_path)


def test_held_out_prompts_in_training_tables_are_counted(tmp_path: Path):
    def prompt(text: str) -> Prompt:
        return Prompt(record_id(text), "s", (Message("user", text),))

    write_table(tmp_path / "test_prompts.parquet", [prompt(text) for text in "abc"])
    learned = tmp_path / "learned"
    learned.mkdir()
    write_table(learned / "prompts.parquet", [prompt(text) for text in "cd"])
    conversation = (Message("user", "a"), Message("assistant", "yes"))
    write_table(learned / "demonstrations.parquet", [Demonstration("1", "s", conversation)])
    write_table(learned / "test_prompts.parquet", [prompt("b")])
    tables = training_tables(learned)
    assert [path.name for path in tables] == ["demonstrations.parquet", "prompts.parquet"]
    assert trained_prompts(tmp_path, tables) == 2, "c, and a before its answer; not b, which is held out there too"
    assert trained_prompts(tmp_path, []) == 0 and held_out_ids(tmp_path) == [record_id(text) for text in "abc"]


# The card


def content(**more: Any) -> CardContent:
    prompts = [f"p{i}" for i in range(120)]

    def policy(name: str, accuracy: float) -> Evidence:
        values = {prompt: float(i < accuracy * 120) for i, prompt in enumerate(prompts)}
        tokens = dict.fromkeys(prompts, 4.0)
        quantities = {"accuracy": Quantity(values, "higher"), "completion_tokens": Quantity(tokens, "neither")}
        quantities |= {"kl_nats": Quantity(tokens, "lower"), "finished": Quantity(dict.fromkeys(prompts, 1.0), "higher")}
        findings = [Finding("format", "warning", HOSTILE)]
        return Evidence(name, f"{accuracy:.2f}" * 16, quantities, conditions={"evaluation": {}}, held_out=prompts, findings=findings)

    own, other = policy(HOSTILE, 0.75), policy("old", 0.5)
    decision = decide(own, other, GateConfig(resamples=200))
    assert decision.accepted
    made = [
        Made("curate", "run-1", "curate", "curate-1", "cc" * 32, {}, {"sources.0.name": HOSTILE}),
        Made("dpo", "run-1", "dpo", "dpo-1", own.digest, {"data": "cc" * 32, "reward": "dd" * 32}, {"beta": "0.1"}),
    ]
    known = {"made": made, "base": {"kind": "packaged", "model": "smollm2-135m-instruct", "note": "dequantised"}, **more}
    return CardContent("arithmetic", own, other, "champion version 1", decision, "d-1", **known)


def test_a_card_says_what_a_reader_must_know():
    data = "---\nlicense: mit\nlicense_name: MIT, not stated\n---\n\n# Data card\n\n## Sources\n\nrows\n"
    text = card(content(data_cards={"cc" * 32: data}))
    titles = [line for line in text.splitlines() if line.startswith("## ")]
    assert titles == [f"## {name}" for name in ("Decision", "Evaluation", "Limits", "Data", "Lineage", "Method and settings", "Licence")]
    assert "| beats on accuracy | passed | gain +0.250" in text
    assert "| accuracy | 0.750 \\[" in text and "| 0.500 \\[" in text
    assert "- not measured: over-refusal and compliance" in text and "weights of the base model: dequantised" in text
    assert "### Data card\n\n#### Sources" in text and "license_name" not in text
    assert "data = curate cccccccccccc, reward = unknown dddddddddddd" in text
    assert "| beta | 0.1 |" in text
    assert "- base model smollm2-135m-instruct: Apache-2.0" in text and "- data: MIT, not stated" in text


def test_hostile_text_stays_text():
    text = card(content())
    assert "<script" not in text and "![" not in text and "`a`" not in text
    assert [line for line in text.splitlines() if line.startswith("# ")] == ["# Model card: arithmetic"]


@pytest.mark.parametrize(
    ("base", "line"),
    [
        ({"kind": "scratch", "model": "scratch"}, "base model scratch: none needed: it began with random weights"),
        ({"kind": "folder", "model": "/m", "license": "mit"}, "base model /m: mit"),
        ({"kind": "hub", "model": "a/b"}, "base model a/b: not stated; see where the model comes from"),
        ({}, "base model unknown: not stated; see where the model comes from"),
    ],
)
def test_the_licence_of_the_base_model(base: dict[str, str], line: str):
    assert f"- {line}" in card(content(base=base))


def test_every_packaged_model_has_a_licence():
    assert PACKAGED_LICENSES.keys() == PACKAGED.keys()
