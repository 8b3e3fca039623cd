"""Rankings and pairs from scored completions, and judges that fail."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.records import Message, Preference, Prompt, Ranking
from data.tables import read_table
from models.configs.preferences import PreferencesConfig
from models.configs.sampling import SamplingConfig
from models.preferences import collect, load_judge, pairs_of, rank
from models.run import Run, Stopped

PROMPT = Prompt("p", "toy", (Message("user", "?"),), "1", "number")


def ranked(scores: dict[str, float]) -> Ranking:
    return rank(PROMPT, list(scores), list(scores.values()))


def pairs(ranking: Ranking, most: int = 99, min_gap: float = 0.0) -> list[tuple[str, str, float]]:
    return [(p.chosen, p.rejected, p.margin) for p in pairs_of(ranking, most, min_gap)]


# By hand


def test_ranks_with_ties():
    """D > G > A = B."""
    ranking = ranked({"A": 0.1, "B": 0.1, "D": 0.9, "G": 0.5})
    assert dict(zip(ranking.completions, ranking.ranks, strict=True)) == {"A": 2, "B": 2, "D": 0, "G": 1}
    assert rank(PROMPT, "abcd", [0, 1, 0.5, 1]).ranks == (2, 0, 1, 0)
    assert ranking.scores == (0.1, 0.1, 0.9, 0.5) and ranking.prompt == PROMPT.messages


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
    assert pairs(rank(PROMPT, ["a", " a\n", "b"], [1.0, 0.0, 0.5])) == [("a", "b", 0.5), ("b", " a\n", 0.5)]


# Judges


def write_judge(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> PreferencesConfig:
    (folder / f"{name}.py").write_text(f"def judge(prompt, text):\n    {body}\n")
    monkeypatch.syspath_prepend(folder)
    return PreferencesConfig(samples_per_prompt=3, sampling=SamplingConfig(max_tokens=6), judge="callable", judge_callable=f"{name}:judge")


@pytest.mark.parametrize(("body", "error"), [("raise KeyError('no')", "KeyError('no')"), ("return float('nan')", "the judge returned nan")])
def test_a_judge_that_fails_scores_0_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, error: str):
    judge = load_judge(write_judge(tmp_path, monkeypatch, f"judge_{abs(hash(body))}", body))
    verdict = judge(PROMPT, "anything")
    assert (verdict.score, verdict.correct, verdict.error) == (0.0, False, error)


@pytest.mark.parametrize("name", ["", "nothing:judge", "math:nothing", "math"])
def test_a_judge_that_cannot_be_imported_is_named(name: str):
    with pytest.raises(ValueError, match=f"judge_callable '{name}' cannot be imported .* write module:function"):
        load_judge(PreferencesConfig(judge="callable", judge_callable=name))


def test_without_a_callable_the_prompts_own_verifier_judges():
    judge = load_judge(PreferencesConfig())
    assert (judge(PROMPT, "it is 1").score, judge(PROMPT, "it is 2").score) == (1.0, 0.0)


# The stage


def test_pairs_are_split_by_prompt_and_failures_counted(base: Path, tables: Path, run: Run, tmp_path: Path, monkeypatch, journal: Callable):
    """The judge likes variety and fails on the answers to two prompts; one of six prompts is held out."""
    body = "return len(set(text)) / len(text) if prompt.id not in ('p0', 'p1') else 1 / 0"
    config = write_judge(tmp_path, monkeypatch, "choosy", body).model_copy(update={"test_share": 1 / 6, "pairs_per_prompt": 2})
    meta = collect(config, policy=base, data=tables, seed=1, run=run)
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
    collect(config.model_copy(update={"prompts": 3, "test_share": 0.0}), policy=base, data=tables, seed=0, run=run)
    assert len(read_table(run.out / "rankings.parquet", Ranking)) == 3
    assert not (run.out / "test_preferences.parquet").exists()


def test_seeds_and_chunks_sample_apart(base: Path, tables: Path, new_run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    config = write_judge(tmp_path, monkeypatch, "wordy", "return len(text.encode())")
    same = read_table(tables / "prompts.parquet", Prompt)[:1] * 2
    monkeypatch.setattr("models.preferences.read_table", lambda *_: same)

    def completions(name: str, seed: int, chunk: int) -> list[tuple[str, ...]]:
        run = new_run(name)
        collect(config.model_copy(update={"chunk_prompts": chunk, "test_share": 0.0}), policy=base, data=tables, seed=seed, run=run)
        return [r.completions for r in read_table(run.out / "rankings.parquet", Ranking)]

    first, second = completions("a", 0, 1)
    assert first != second, "the same prompt in another chunk"
    assert completions("b", 0, 1) == [first, second]
    assert completions("c", 1, 1)[0] != first


def test_sigterm_stops_in_the_middle_of_a_chunk(base: Path, tables: Path, run: Run):
    run._asked_to_stop = True
    with pytest.raises(Stopped):
        collect(PreferencesConfig(sampling=SamplingConfig(max_tokens=6)), policy=base, data=tables, seed=0, run=run)
    assert not list(run.checkpoints.glob("sampled-*"))


def test_a_judge_that_prefers_nothing_is_an_error(base: Path, tables: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="the judge found no completion better than another in 6 prompts"):
        collect(write_judge(tmp_path, monkeypatch, "indifferent", "return 0.5"), policy=base, data=tables, seed=0, run=run)


def test_answers_are_sampled_chunk_by_chunk_and_kept(base: Path, tables: Path, new_run: Callable, tmp_path: Path, monkeypatch: Any):
    config = write_judge(tmp_path, monkeypatch, "variety", "return len(set(text))").model_copy(update={"chunk_prompts": 2})
    run = new_run()
    collect(config, policy=base, data=tables, seed=0, run=run)
    kept = sorted(run.checkpoints.glob("sampled-*.json"))
    assert len(kept) == 3
    wanted = (run.out / "preferences.parquet").read_bytes()
    monkeypatch.setattr("models.preferences.generate", lambda *a, **k: pytest.fail("sampled again"))
    again = new_run()
    collect(config, policy=base, data=tables, seed=0, run=again)
    assert (again.out / "preferences.parquet").read_bytes() == wanted
