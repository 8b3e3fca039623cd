"""Preferences from an AI judge."""

from pathlib import Path

import pytest

from data.judgements import Judgement
from data.records import Message, Preference, Ranking
from data.tables import read_table
from models.ai_feedback import collect, preferences_of, ranking_of
from models.configs.ai_feedback import AIFeedbackConfig
from models.configs.sampling import SamplingConfig
from models.judging.local import LocalJudge
from models.judging.verdicts import Answer

PROMPT = (Message("user", "?"),)


def judgement(texts: str, ranks: tuple[int, ...], scores: tuple[float, ...], grade: int = 0) -> Judgement:
    return Judgement("j", "toy", "ai", PROMPT, tuple(texts), ranks, grade, scores)


def test_the_grade_is_the_margin():
    (pair,) = preferences_of(judgement("xy", (1, 0), (0.0, 1.0), -2), 1)
    assert (pair.chosen, pair.rejected, pair.margin) == ("y", "x", 2.0)
    (pair,) = preferences_of(judgement("xy", (0, 1), (1.0, 0.0), 1), 1)
    assert (pair.chosen, pair.rejected, pair.margin) == ("x", "y", 1.0)
    (pair,) = preferences_of(judgement("xy", (0, 1), (1.0, 0.0)), 1)
    assert pair.margin == 1.0


def test_ties_and_abstentions_make_no_pair():
    assert preferences_of(judgement("xy", (0, 0), (0.5, 0.5)), 1) == []
    assert preferences_of(judgement("xy", (), ()), 1) == []
    pairs = preferences_of(judgement("xyz", (1, 0, 1), (0.25, 1.0, 0.25)), 9)
    assert [(p.chosen, p.rejected, p.margin) for p in pairs] == [("y", "x", 0.75)]
    assert ranking_of(judgement("xyz", (1, 0, 1), (0.25, 1.0, 0.25))).ranks == (1, 0, 1)


@pytest.fixture
def config() -> AIFeedbackConfig:
    return AIFeedbackConfig(samples_per_prompt=3, sampling=SamplingConfig(max_tokens=6), test_share=1 / 3, chunk_prompts=2)


def longer(self, questions, *, seed, tick):
    return [Answer((len(q.first) > len(q.second)) - (len(q.first) < len(q.second))) for q in questions]


def test_pairs_are_what_the_judge_prefers(base, tables, run, config, journal, monkeypatch):
    monkeypatch.setattr(LocalJudge, "__call__", longer)
    monkeypatch.setattr("models.judging.pairwise.degenerate", lambda text: "")
    meta = collect(config, policy=base, judge=base, data=tables, cache=Path("/none"), seed=0, run=run)
    pairs = read_table(run.out / "preferences.parquet", Preference)
    held_out = read_table(run.out / "test_preferences.parquet", Preference)
    assert pairs and all(len(p.chosen) > len(p.rejected) and p.margin > 0 for p in (*pairs, *held_out))
    assert not {p.prompt for p in pairs} & {p.prompt for p in held_out}
    judgements = read_table(run.out / "judgements.parquet", Judgement)
    assert [j.completions for j in judgements] == [r.completions for r in read_table(run.out / "rankings.parquet", Ranking)]
    assert (meta["prompts"], meta["pairs"], meta["test_pairs"]) == (6, len(pairs), len(held_out))
    ((_, metrics),) = journal(run)
    assert metrics["judge/pairs"] == 18 and metrics["judge/abstained"] == 0


def test_a_judge_that_decides_nothing_is_an_error(base, tables, run, config, monkeypatch):
    monkeypatch.setattr(LocalJudge, "__call__", lambda self, questions, **_: [Answer(2) for _ in questions])
    monkeypatch.setattr("models.judging.pairwise.degenerate", lambda text: "")
    with pytest.raises(ValueError, match="no completion better than another in 6 prompts"):
        collect(config, policy=base, judge=base, data=tables, cache=Path("/none"), seed=0, run=run)
