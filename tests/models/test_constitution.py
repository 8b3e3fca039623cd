"""Critique and revision: what is asked, what becomes a demonstration, and that a kill leaves no trace."""

import json
from pathlib import Path

import pytest

from data.records import Demonstration, Message, Prompt
from data.tables import read_table, write_table
from models.configs.constitution import Principle, ReviseConfig
from models.configs.sampling import SamplingConfig
from models.constitution import Reviser, chosen, revise

PRINCIPLES = [
    Principle(name=name, critique=f"What is not {name}?", revision=f"Be {name}.", comparison=f"The {name} one.")
    for name in ("kind", "true")
]
SHORT = SamplingConfig(max_tokens=5)
PROMPTS = [Prompt(f"p{i}", "toy", (Message("user", f"{i}?"),)) for i in range(3)]


def settings(**changed) -> ReviseConfig:
    return ReviseConfig(
        **{"principles": PRINCIPLES, "answer": SHORT, "critique": SHORT, "drop_unfinished": False, "chunk_prompts": 2, **changed}
    )


def step(number: int, revision: str, round_number: int = 1, answer: str = "old", finished: bool = True) -> dict:
    return {"id": f"p{number}", "round": round_number, "answer": answer, "critique": "bad", "revision": revision, "finished": finished}


# What is asked


def test_the_talk_goes_from_answer_to_critique_to_revision(base, run, monkeypatch):
    reviser, talks = Reviser(settings(rounds=2), base, 0, run), []

    def write(seen, sampling, what, number):
        talks.append((what, [tuple(message.content for message in talk) for talk in seen]))
        return [(f"{what} of {i}", i != 2) for i in range(len(seen))]

    monkeypatch.setattr(reviser, "_written", write)
    rows = reviser.revise(0, PROMPTS)
    assert [what for what, _ in talks] == ["answer", "critique 0", "revision 0", "critique 1", "revision 1"]
    by_name = {principle.name: principle for principle in PRINCIPLES}
    assert [(row["id"], row["round"]) for row in rows] == [(f"p{i}", number) for i in range(3) for number in (1, 2)]
    for i in range(3):
        first, second = (by_name[row["principle"]] for row in rows[2 * i : 2 * i + 2])
        assert talks[1][1][i] == (f"{i}?", f"answer of {i}", first.critique)
        assert talks[2][1][i] == (f"{i}?", f"answer of {i}", first.critique, f"critique 0 of {i}", first.revision)
        assert talks[3][1][i] == (f"{i}?", f"revision 0 of {i}", second.critique)
        assert rows[2 * i + 1]["answer"] == f"revision 0 of {i}" and rows[2 * i + 1]["revision"] == f"revision 1 of {i}"
    assert [row["finished"] for row in rows] == [True] * 4 + [False] * 2


def test_principles_are_drawn_by_seed_prompt_and_round(base, run):
    names = {
        (seed, i, number): Reviser(settings(), base, seed, run)._principle(Prompt(f"p{i}", "toy", ()), number).name
        for seed in (0, 1)
        for i in range(8)
        for number in (0, 1)
    }
    assert set(names.values()) == {"kind", "true"}
    assert [names[0, i, 0] for i in range(8)] != [names[1, i, 0] for i in range(8)] != [names[1, i, 1] for i in range(8)]


# What is imitated


def test_degenerate_and_unfinished_revisions_are_left_out_and_counted():
    rows = [step(0, "new"), step(1, "Revised answer:"), step(2, "cut o", finished=False)]
    demonstrations, summary = chosen(settings(drop_unfinished=True), PROMPTS, rows)
    assert [d.messages for d in demonstrations] == [(Message("user", "0?"), Message("assistant", "new"))]
    assert (summary["constitution/degenerate"], summary["constitution/unfinished"], summary["constitution/demonstrations"]) == (1, 1, 1)
    assert len(chosen(settings(), PROMPTS, rows)[0]) == 2, "unfinished ones may be kept"


def test_the_last_revision_or_all_of_them():
    rows = [
        step(0, "new"),
        step(0, "newer", 2, "new"),
        step(1, "same"),
        step(1, "same", 2, "same"),
        step(2, "fine"),
        step(2, ":", 2, "fine"),
    ]
    last, summary = chosen(settings(rounds=2), PROMPTS, rows)
    assert [d.messages[-1].content for d in last] == ["newer", "same"]
    assert summary["constitution/changed"] == pytest.approx(5 / 6)
    assert (summary["constitution/answer_characters"], summary["constitution/revision_characters"]) == (3, pytest.approx((5 + 4 + 1) / 3))
    everything, _ = chosen(settings(rounds=2, train_on="all"), PROMPTS, rows)
    assert [d.messages[-1].content for d in everything] == ["new", "newer", "same", "fine"], "no conversation twice"


# The stage


def test_the_stage_passes_the_other_tables_on(base, tables, run, journal):
    meta = revise(settings(), policy=base, data=tables, seed=0, run=run)
    demonstrations = read_table(run.out / "demonstrations.parquet", Demonstration)
    prompts = read_table(tables / "prompts.parquet", Prompt)
    assert len(demonstrations) == meta["demonstrations"] > 0 and meta["prompts"] == meta["revisions"] == 6
    assert {d.messages[:-1] for d in demonstrations} <= {p.messages for p in prompts}
    for name in ("prompts", "test_prompts", "preferences", "labels"):
        assert (run.out / f"{name}.parquet").read_bytes() == (tables / f"{name}.parquet").read_bytes()
    rows = [json.loads(line) for line in (run.out / "revisions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [p.id for p in prompts]
    assert set(rows[0]) == {"id", "prompt", "round", "answer", "principle", "critique", "revision", "finished"}
    ((_, metrics),) = journal(run)
    assert metrics == {f"constitution/{name}": value for name, value in meta.items()}


def test_given_demonstrations_may_be_kept(base, tables, new_run):
    alone, mixed = new_run("alone"), new_run("mixed")
    revise(settings(), policy=base, data=tables, seed=0, run=alone)
    revise(settings(keep_demonstrations=True), policy=base, data=tables, seed=0, run=mixed)
    own = read_table(alone.out / "demonstrations.parquet", Demonstration)
    given = read_table(tables / "demonstrations.parquet", Demonstration)
    assert read_table(mixed.out / "demonstrations.parquet", Demonstration) == own + given


def test_no_usable_revision_is_an_error(base, tmp_path, run, monkeypatch):
    write_table(tmp_path / "prompts.parquet", PROMPTS)
    monkeypatch.setattr("models.constitution.text_of", lambda *_: "...")
    with pytest.raises(ValueError, match="none of 3 revisions can be used"):
        revise(settings(), policy=base, data=tmp_path, seed=0, run=run)


def test_a_killed_stage_ends_as_one_that_was_not(base, tables, stage_process, tmp_path: Path):
    config, inputs = settings(rounds=2), {"policy": base, "data": tables}
    whole = stage_process(tmp_path / "whole", "models.constitution:revise", config, inputs)
    whole.run()
    killed = stage_process(tmp_path / "killed", "models.constitution:revise", config, inputs)
    killed.kill("chunk:2")
    killed.stop(2)
    killed.run()
    assert killed.digests() == whole.digests() and killed.history() == whole.history()
    assert "revisions.jsonl" in whole.digests()
