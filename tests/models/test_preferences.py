"""Rankings, pairs and ties from judged completions, judges that fail, and the stage as one judge leaves it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.judgements import SLIGHTLY_WORSE, Candidates, Judgement
from data.records import Label, Message, Preference, Prompt, Ranking
from data.tables import read_table
from data.votes import Settled
from models.configs.preferences import JudgeConfig, PreferencesConfig, WriterConfig
from models.configs.sampling import SamplingConfig
from models.panel import Evidence, load_judging
from models.preferences import Outcome, collect, outcome_of, pairs_of, split_outcomes, ties_of
from models.run import Run, Stopped

PROMPT = (Message("user", "?"),)


def row(*texts: str) -> Candidates:
    return Candidates("c", "toy", PROMPT, texts, ("sft@1.0",) * len(texts), "1", "number")


def of(ranks: tuple[int, ...], scores: tuple[float, ...], texts: tuple[str, ...]) -> Ranking:
    return Ranking("r", "toy", PROMPT, texts, ranks, scores)


def ranked(scores: dict[str, float]) -> Ranking:
    values = tuple(scores.values())
    return of(tuple(sorted(set(values), reverse=True).index(v) for v in values), values, tuple(scores))


def pairs(ranking: Ranking, most: int = 99, min_gap: float = 0.0) -> list[tuple[str, str, float]]:
    return [(p.chosen, p.rejected, p.margin) for p in pairs_of(ranking, most, min_gap)]


# By hand


def test_equal_texts_are_judged_once_and_all_ranked():
    """D > G > A = B, of which G was written twice."""
    settled = Settled((2, 2, 0, 1), (0.1, 0.1, 0.9, 0.5), (0.1, 0.2, 0.3, 0.4), failed=(False,) * 4)
    outcome = outcome_of(row("A", "B", "D", "G", "G"), (0, 1, 2, 3, 3), settled, PreferencesConfig(pairs_per_prompt=9))
    assert outcome.ranking is not None
    assert (outcome.ranking.ranks, outcome.ranking.scores) == ((2, 2, 0, 1, 1), (0.1, 0.1, 0.9, 0.5, 0.5))
    assert [(label.completion, label.desirable) for label in outcome.labels] == [("A", False), ("B", False), ("D", True), ("G", True)]
    assert [(p.chosen, p.rejected) for p in outcome.pairs] == [("D", "A"), ("G", "B")]


def test_the_widest_gap_makes_the_pair():
    assert pairs(ranked({"a": 0.0, "b": 1.0, "c": 0.5}), most=1) == [("b", "a", 1.0)]


def test_no_text_is_twice_on_the_same_side():
    assert pairs(ranked({"a": 0.0, "b": 1.0, "c": 0.5})) == [("b", "a", 1.0)], "c beats a, and a is rejected already"
    four = ranked({"a": 0.0, "b": 1.0, "c": 0.75, "d": 0.5})
    assert pairs(four) == [("b", "a", 1.0), ("c", "d", 0.25)], "then the widest gap of what is left"
    assert pairs(four, most=1) == [("b", "a", 1.0)]


def test_ties_make_no_pair():
    assert pairs(ranked({"a": 0.5, "b": 0.5})) == []
    assert pairs(ranked({"a": 0.0, "b": 0.25}), min_gap=0.25) == [], "a gap of just min_gap is a tie"
    assert pairs(ranked({"a": 0.0, "b": 0.5}), min_gap=0.25) == [("b", "a", 0.5)]


def test_the_same_text_is_not_paired_with_itself():
    """A judge with moods."""
    assert pairs(of((0, 2, 1), (1.0, 0.0, 0.5), ("a", " a\n", "b"))) == [("a", "b", 0.5), ("b", " a\n", 0.5)]


def test_ranks_alone_make_pairs_without_a_margin():
    """K-way by a person: the farthest ranks first; min_gap is for scores."""
    assert pairs(of((1, 0, 2, 1), (), ("a", "b", "c", "d")), most=1, min_gap=0.5) == [("b", "c", 0.0)]


def test_ties_by_hand():
    """Ranks D > G > A = B: one tie; a gap of just min_gap is one too; no text twice, none with itself, no more than asked for."""

    def ties(ranking: Ranking, most: int = 9, min_gap: float = 0.0) -> list[tuple[str, str]]:
        return [(tie.first, tie.second) for tie in ties_of(ranking, most, min_gap)]

    four = of((2, 2, 0, 1), (), ("A", "B", "D", "G"))
    assert ties(four) == [("A", "B")]
    assert ties(ranked({"a": 0.0, "b": 0.25, "c": 1.0}), min_gap=0.25) == [("a", "b")]
    assert ties(of((0, 0, 0, 0), (), ("a", "a ", "b", "c"))) == [("a", "b"), ("a ", "c")]
    assert ties(of((0, 0, 0, 0), (), ("a", "b", "c", "d")), most=1) == [("a", "b")]


def test_a_grade_becomes_the_margin():
    """Slightly worse: the second one wins, by the smaller margin; with margin 0 it still wins."""
    settled = Settled((1, 0), (), (0.25, 0.75), SLIGHTLY_WORSE, (False, False))
    outcome = outcome_of(row("a", "b"), (0, 1), settled, PreferencesConfig(margin_better=1.5, margin_slightly_better=0.25))
    assert outcome.ranking is not None and (outcome.ranking.ranks, outcome.ranking.scores) == ((1, 0), (0.0, 0.25))
    assert [(p.chosen, p.rejected, p.margin) for p in outcome.pairs] == [("b", "a", 0.25)]
    assert [(label.completion, label.desirable) for label in outcome.labels] == [("a", False), ("b", True)], "by comparisons won"
    flat = outcome_of(row("a", "b"), (0, 1), settled, PreferencesConfig(margin_slightly_better=0.0))
    assert [(p.chosen, p.margin) for p in flat.pairs] == [("b", 0.0)]
    strict = outcome_of(row("a", "b"), (0, 1), settled, PreferencesConfig(min_gap=0.4, ties="keep"))
    assert not strict.pairs and [(t.first, t.second) for t in strict.ties] == [("a", "b")], "slightly is a tie to who asks for more"


def test_the_last_share_of_what_was_sampled_and_of_what_was_given_is_held_out():
    """Three of six, one of two; a prompt that is on both sides leaves the training side."""
    keys = ["a", "b", "c", "d", "e", "f", "d", "g"]
    outcomes = [Outcome(key, None, [], [], []) for key in keys]
    train, test = split_outcomes(outcomes, 6, 0.5)
    assert [o.key for o in test] == ["d", "e", "f", "g"] and [o.key for o in train] == ["a", "b", "c"]
    assert split_outcomes(outcomes[:6], 6, 0.0) == (outcomes[:6], [])


# Judges


def write_judge(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> PreferencesConfig:
    (folder / f"{name}.py").write_text(f"def judge(prompt, text):\n    {body}\n")
    monkeypatch.syspath_prepend(folder)
    return PreferencesConfig(
        samples_per_prompt=3, sampling=SamplingConfig(max_tokens=6), judges=[JudgeConfig(kind="callable", callable=f"{name}:judge")]
    )


def ask(config: PreferencesConfig, run: Run, *texts: str) -> Judgement:
    (judgement,) = load_judging(config.judges[0], Evidence(), run)([row(*texts)], seed=0, tick=lambda: None)
    return judgement


@pytest.mark.parametrize(("body", "error"), [("raise KeyError('no')", "KeyError('no')"), ("return float('nan')", "the judge returned nan")])
def test_a_judge_that_fails_says_so(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, body: str, error: str):
    judgement = ask(write_judge(tmp_path, monkeypatch, f"judge_{abs(hash(body))}", body), run, "anything", "else")
    assert judgement.ranks == (0, 0) and all(score != score for score in judgement.scores) and judgement.reason == error


@pytest.mark.parametrize("name", ["nothing:judge", "math:nothing", "math"])
def test_a_judge_that_cannot_be_imported_is_named(name: str, run: Run):
    with pytest.raises(ValueError, match=f"callable of judge 'callable' '{name}' cannot be imported .* write module:function"):
        ask(PreferencesConfig(judges=[JudgeConfig(kind="callable", callable=name)]), run, "a")


def test_without_another_judge_the_prompts_own_verifier_judges(run: Run):
    assert ask(PreferencesConfig(), run, "it is 1", "it is 2").scores == (1.0, 0.0)


# The stage


def test_pairs_are_split_by_prompt_and_failures_counted(base: Path, tables: Path, run: Run, tmp_path: Path, monkeypatch, journal: Callable):
    """The judge likes variety and fails on the answers to two prompts; one of six prompts is held out."""
    body = "return len(set(text)) / len(text) if prompt.messages[0].content[0] not in '01' else 1 / 0"
    config = write_judge(tmp_path, monkeypatch, "choosy", body).model_copy(update={"test_share": 1 / 6, "pairs_per_prompt": 2})
    meta = collect(config, policies={"base": base}, data=tables, seed=1, run=run)
    rankings = read_table(run.out / "rankings.parquet", Ranking)
    train = read_table(run.out / "preferences.parquet", Preference)
    test = read_table(run.out / "test_preferences.parquet", Preference)
    prompts = read_table(tables / "prompts.parquet", Prompt)
    assert [r.prompt for r in rankings] == [p.messages for p in prompts]
    assert {p.prompt for p in test} == {prompts[-1].messages} and not {p.prompt for p in train} & {p.prompt for p in test}
    assert [r.ranks for r in rankings[:2]] == [(0, 0, 0)] * 2, "what could not be judged is a tie"
    by_prompt = {r.prompt: dict(zip(r.completions, r.scores, strict=True)) for r in rankings}
    for pair in (*train, *test):
        scores = by_prompt[pair.prompt]
        assert pair.margin == scores[pair.chosen] - scores[pair.rejected] > 0
    assert (meta["prompts"], meta["pairs"], meta["test_pairs"], meta["judge_failures"]) == (6, len(train), len(test), 6)
    assert meta["tied_prompts"] >= 2
    ((step, metrics),) = journal(run)
    assert step == 0 and metrics == {f"preferences/{name}": value for name, value in meta.items()}
    assert meta["score"] == pytest.approx(sum(s for r in rankings for s in r.scores) / 18)


def test_fewer_prompts_and_nothing_held_out(base: Path, tables: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = write_judge(tmp_path, monkeypatch, "lengthy", "return len(text.encode())")
    collect(config.model_copy(update={"prompts": 3, "test_share": 0.0}), policies={"base": base}, data=tables, seed=0, run=run)
    assert len(read_table(run.out / "rankings.parquet", Ranking)) == 3
    assert not (run.out / "test_preferences.parquet").exists()


def test_seeds_and_chunks_sample_apart(base: Path, tables: Path, new_run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = write_judge(tmp_path, monkeypatch, "wordy", "return len(text.encode())")
    same = read_table(tables / "prompts.parquet", Prompt)[:1] * 2
    monkeypatch.setattr("models.writing.read_table", lambda *_: same)

    def completions(name: str, seed: int, chunk: int) -> list[tuple[str, ...]]:
        run = new_run(name)
        collect(
            config.model_copy(update={"chunk_prompts": chunk, "test_share": 0.0}), policies={"base": base}, data=tables, seed=seed, run=run
        )
        return [r.completions for r in read_table(run.out / "rankings.parquet", Ranking)]

    first, second = completions("a", 0, 1)
    assert first != second, "the same prompt in another chunk"
    assert completions("b", 0, 1) == [first, second]
    assert completions("c", 1, 1)[0] != first


def test_sigterm_stops_in_the_middle_of_a_chunk(base: Path, tables: Path, run: Run):
    run._asked_to_stop = True
    with pytest.raises(Stopped):
        collect(PreferencesConfig(sampling=SamplingConfig(max_tokens=6)), policies={"base": base}, data=tables, seed=0, run=run)
    assert not list(run.checkpoints.glob("sampled-*"))


def test_a_judge_that_prefers_nothing_is_an_error(base: Path, tables: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="the judge found no completion better than another in 6 prompts"):
        collect(write_judge(tmp_path, monkeypatch, "indifferent", "return 0.5"), policies={"base": base}, data=tables, seed=0, run=run)


def test_answers_are_sampled_chunk_by_chunk_and_kept(base: Path, tables: Path, new_run: Callable, tmp_path: Path, monkeypatch: Any):
    config = write_judge(tmp_path, monkeypatch, "variety", "return len(set(text))").model_copy(update={"chunk_prompts": 2})
    run = new_run()
    collect(config, policies={"base": base}, data=tables, seed=0, run=run)
    kept = sorted(run.checkpoints.glob("sampled-*.json"))
    assert len(kept) == 3
    wanted = (run.out / "preferences.parquet").read_bytes()
    monkeypatch.setattr("models.sampler.generate", lambda *a, **k: pytest.fail("sampled again"))
    again = new_run()
    collect(config, policies={"base": base}, data=tables, seed=0, run=again)
    assert (again.out / "preferences.parquet").read_bytes() == wanted


def test_several_writers_at_several_temperatures(
    base: Path, other: Path, tables: Path, new_run: Callable, tmp_path: Path, monkeypatch: Any
):
    """Two policies, one of them cold and warm; what the first writes does not depend on the others. Candidates say who wrote what."""
    config = write_judge(tmp_path, monkeypatch, "sizes", "return len(text.encode())").model_copy(update={"samples_per_prompt": 2})
    alone = config.model_copy(update={"writers": [WriterConfig(policy="sft")]})
    several = config.model_copy(update={"writers": [WriterConfig(policy="sft", temperatures=[1.0, 0.0]), WriterConfig(policy="base")]})
    runs = new_run("alone"), new_run("several")
    collect(alone, policies={"sft": other}, data=tables, seed=0, run=runs[0])
    meta = collect(several, policies={"sft": other, "base": base}, data=tables, seed=0, run=runs[1])
    first, second = ([r.completions for r in read_table(run.out / "rankings.parquet", Ranking)] for run in runs)
    assert [texts[:2] for texts in second] == first and all(len(texts) == 6 for texts in second)
    assert all(texts[2] == texts[3] for texts in second), "greedy twice is the same text"
    twice = config.model_copy(update={"writers": [WriterConfig(temperatures=[1.0, 1.0])]})
    collect(twice, policies={"sft": other}, data=tables, seed=0, run=new_run("twice"))
    drawn = [r.completions for r in read_table(new_run("twice").out / "rankings.parquet", Ranking)]
    assert [t[:2] for t in drawn] == first and all(t[:2] != t[2:] for t in drawn), "each draws by itself"
    assert meta["prompts"] == 6
    judged = read_table(runs[1].out / "judgements.parquet", Judgement)
    assert all(len(set(j.completions)) == len(j.completions) <= 5 for j in judged), "judges see a text once"
    assert all(p.chosen != p.rejected for p in read_table(runs[1].out / "preferences.parquet", Preference))
    assert len(read_table(runs[1].out / "labels.parquet", Label)) == meta["labels"]
    with pytest.raises(ValueError, match="a writer is the policy 'sft', and the policies are base"):
        collect(alone, policies={"base": base}, data=tables, seed=0, run=new_run("wrong"))


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"samples_per_prompt": 1}, "leaves nothing to compare"),
        ({"writers": [{"temperatures": [11.0]}]}, "less than or equal to 10"),
        ({"writers": []}, "writers is empty and no judge is a dataset"),
        ({"judges": []}, "at least 1 item"),
        ({"judges": [{}, {}]}, "two judges are called 'verifier'"),
        ({"judges": [{"kind": "people"}, {"kind": "people", "name": "others"}]}, "two judges of kind people"),
        ({"judges": [{"kind": "dataset"}]}, "a dataset knows its own completions only"),
        ({"judges": [{"kind": "callable"}]}, "callable '' with kind callable"),
        ({"judges": [{"callable": "a:b"}]}, "callable 'a:b' with kind verifier"),
        ({"judges": [{"weight": 0}]}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], fault: str):
    with pytest.raises(ValueError, match=fault):
        PreferencesConfig.model_validate(settings)
