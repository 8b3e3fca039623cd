"""Panels of judges: votes, prompts shared out, a reward model, people by id, labelled sets, and who abstains."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.judgements import BETTER, SLIGHTLY_BETTER, SLIGHTLY_WORSE, TIE, Candidates, Judgement
from data.packing import Group
from data.records import Message, Preference, Ranking, Tie
from data.tables import read_table, write_table
from data.templates import load_tokenizer, render_prompt
from data.votes import Settled
from models.configs.preferences import JudgeConfig, PreferencesConfig
from models.configs.reward_model import RewardModelConfig
from models.configs.sampling import SamplingConfig
from models.heads import load_scalar, new_scalar
from models.losses.sums import merge
from models.panel import Evidence, is_drawn, judge_rows
from models.panel_judges import labelled_sets
from models.preferences import collect, sample
from models.rendering import completion_ids
from models.rewards import score_groups
from models.run import Run
from models.training import reward_model

SHORT = SamplingConfig(max_tokens=6)


def row(name: str = "c", *texts: str, verifier: str = "number") -> Candidates:
    texts = texts or ("1", "2", "3")
    return Candidates(name, "toy", (Message("user", f"{name}?"),), texts, ("sft@1.0",) * len(texts), "1", verifier)


def said(judged: Candidates, *ranks: int, judge: str = "ann", grade: int = 0, reason: str = "") -> Judgement:
    return Judgement(judged.id, "toy", judge, judged.prompt, judged.completions, ranks, grade=grade, reason=reason)


def labels(folder: Path, *judgements: Judgement) -> Path:
    folder.mkdir(exist_ok=True)
    write_table(folder / "judgements.parquet", judgements, Judgement)
    return folder


def panel(*judges: dict[str, Any], combine: str = "vote") -> PreferencesConfig:
    return PreferencesConfig.model_validate({"judges": judges, "combine": combine, "sampling": SHORT})


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Judges of numbers: the larger one, the smaller one, whether it is odd."""
    bodies = {"larger": "float(text)", "smaller": "-float(text)", "odd": "float(text) % 2", "broken": "1 / 0 if text == '2' else 1.0"}
    text = "".join(f"def {name}(prompt, text):\n    return {body}\n" for name, body in bodies.items())
    (tmp_path / "number_judges.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)


def function(name: str, weight: float = 1.0) -> dict[str, Any]:
    return {"kind": "callable", "name": name, "callable": f"number_judges:{name}", "weight": weight}


def settle_one(config: PreferencesConfig, run: Run, judged: Candidates, evidence: Evidence = Evidence()) -> Settled:  # noqa: B008
    return judge_rows(config, [judged], evidence, 0, run).settled[0]


# Votes


@pytest.mark.usefixtures("functions")
def test_three_judges_vote_by_hand(run: Run):
    """(1, 2, 3): larger ranks (2, 1, 0), odd (0, 1, 0), the verifier (0, 1, 1).

    1 against 2: -1 + 1 + 1 = 1/3, 1 against 3: -1 + 0 + 1 = 0, 2 against 3: -1 - 1 + 0 = -2/3. Shares of comparisons won:
    1: (2/3 + 1/2) / 2 = 7/12, 2: (1/3 + 1/6) / 2 = 1/4, 3: (1/2 + 5/6) / 2 = 2/3.
    """
    settled = settle_one(panel(function("larger"), function("odd"), {}), run, row())
    assert settled.wins == pytest.approx((7 / 12, 1 / 4, 2 / 3), abs=1e-8) and settled.ranks == (1, 2, 0)


@pytest.mark.usefixtures("functions")
def test_weights_decide_a_vote(new_run: Callable):
    assert settle_one(panel(function("larger"), function("smaller")), new_run("a"), row()).ranks == (0, 0, 0)
    assert settle_one(panel(function("larger", 1.5), function("smaller")), new_run("b"), row()).ranks == (2, 1, 0)


@pytest.mark.usefixtures("functions")
def test_a_judge_that_abstains_leaves_the_vote_to_the_others(run: Run, capsys: pytest.CaptureFixture):
    """The verifier abstains where a prompt has none, and is counted; where no prompt has one it is an error."""
    config = panel(function("larger"), {})
    verdicts = judge_rows(config, [row("a"), row("b", verifier="none")], Evidence(), 0, run)
    assert [v.ranks for v in verdicts.settled] == [(1, 2, 0), (2, 1, 0)]
    assert sum(j.abstained for j in verdicts.judgements) == 1
    assert 'verifier abstained from 1 of 2 prompts: {"the prompt has no verifier": 1}' in capsys.readouterr().out
    with pytest.raises(ValueError, match="has verifier 'none': set its source's to one of"):
        judge_rows(panel({}), [row("b", verifier="none")], Evidence(), 0, run)


@pytest.mark.usefixtures("functions")
def test_what_a_judge_cannot_score_has_its_vote_from_the_others(new_run: Callable):
    verdicts = judge_rows(panel(function("broken")), [row()], Evidence(), 0, new_run("a"))
    assert verdicts.settled[0].failed == (False, True, False) and verdicts.failures([(0, 1, 1, 2)]) == 2, "both copies of the text"
    assert settle_one(panel(function("broken"), function("smaller")), new_run("b"), row()).failed == (False, False, False)


# Shares


@pytest.mark.usefixtures("functions")
def test_prompts_are_shared_out_by_weight_and_seed(new_run: Callable):
    config = panel(function("larger", 3.0), function("smaller"), combine="share")
    rows = [row(f"r{i}") for i in range(400)]

    def takers(name: str, seed: int) -> list[str]:
        verdicts = judge_rows(config, rows, Evidence(), seed, new_run(name))
        by_row = {index: judgement.judge for index, judgement in zip(verdicts.rows, verdicts.judgements, strict=True)}
        assert len(verdicts.judgements) == 400 and [v.ranks[0] for v in verdicts.settled] == [
            2 * (by_row[i] == "larger") for i in range(400)
        ]
        return [by_row[i] for i in range(400)]

    first = takers("a", 1)
    assert 270 < first.count("larger") < 330, "three of four, give or take three deviations"
    assert takers("b", 1) == first != takers("c", 2)
    alone = judge_rows(config, rows[:1], Evidence(), 1, new_run("d")).judgements[0]
    assert alone.judge == first[0], "whatever else is judged"


def test_what_people_are_asked_is_what_falls_to_them(tmp_path: Path, run: Run):
    """Wherever they stand in the list: both stages draw the same prompts."""
    config = panel({"weight": 3.0}, {"kind": "people", "weight": 2.0}, combine="share")
    rows = [row(f"r{i}", "1", "2") for i in range(60)]
    evidence = Evidence(labels=labels(tmp_path / "labels", *(said(r, 0, 1) for r in rows)))
    verdicts = judge_rows(config, rows, evidence, 5, run)
    asked = {index for index, j in zip(verdicts.rows, verdicts.judgements, strict=True) if j.judge == "people"}
    assert asked == {i for i, r in enumerate(rows) if is_drawn(r.id, config.candidates.asked_share, 5)} and 10 < len(asked) < 40


def test_each_judge_has_a_seed_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Two that draw do not draw the same, and the same run asks the same again."""
    seeds: dict[str, set[int]] = {}

    def loaded(config: JudgeConfig, *_: Any) -> Any:
        def judging(candidates: Any, *, seed: int, tick: Any) -> list[Judgement]:
            seeds.setdefault(config.called, set()).add(seed)
            return [said(c, 0, 1) for c in candidates]

        return judging

    monkeypatch.setattr("models.panel.load_judging", loaded)
    config = panel({"name": "a"}, {"name": "b"}).model_copy(update={"chunk_prompts": 1})
    judge_rows(config, [row("x", "1", "2"), row("y", "1", "2")], Evidence(), 0, run)
    assert len(seeds["a"]) == len(seeds["b"]) == 1 and seeds["a"] != seeds["b"]


def test_people_are_asked_about_their_share_alone():
    config = panel({"kind": "people", "weight": 1.0}, {"weight": 3.0}, combine="share").candidates
    assert config.asked_share == 0.25 and not config.labelled_sets
    assert panel({"kind": "people"}, {"kind": "dataset"}, {}).candidates.labelled_sets
    assert panel({"kind": "people"}, {"weight": 9.0}).candidates.asked_share == 1.0, "a vote asks all"
    assert 60 < sum(is_drawn(f"r{i}", 0.25, 0) for i in range(400)) < 140


# Reward models


def test_a_reward_model_judges_by_its_reward(reward_folder: Path, run: Run):
    judged = [row(f"{i}", "yes", "no", "perhaps") for i in range(20)]
    verdicts = judge_rows(panel({"kind": "reward_model"}), judged, Evidence(reward=reward_folder), 0, run)
    tokenizer = load_tokenizer(reward_folder)
    for own, settled in zip(judged, verdicts.settled, strict=True):
        group = Group(render_prompt(tokenizer, own.prompt), [completion_ids(tokenizer, own.prompt, t) for t in own.completions])
        (wanted,) = score_groups(load_scalar(reward_folder), [group], 999)
        assert settled.scores == pytest.approx(wanted, abs=1e-5)
        assert settled.ranks == tuple(sorted(wanted, reverse=True).index(score) for score in wanted)
    with pytest.raises(ValueError, match="judge 'reward_model' is a reward model, and the stage was given none"):
        judge_rows(panel({"kind": "reward_model"}), judged, Evidence(), 0, run)


def test_a_reward_that_is_not_finite_is_a_failure(reward_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("models.panel_judges.score_groups", lambda *_: [[1.0, float("inf"), -3.0]])
    verdicts = judge_rows(panel({"kind": "reward_model"}), [row()], Evidence(reward=reward_folder), 0, run)
    assert verdicts.settled[0].scores == (1.0, -3.0, -3.0) and verdicts.settled[0].failed == (False, True, False)
    assert verdicts.judgements[0].reason == "a reward is not a finite number"


# People


def test_people_are_matched_by_id_and_vote(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture):
    """Rows in another order; of three on b two agree; one passed on c; nobody saw d."""
    rows = [row(name, "x", "y") for name in "abcd"]
    by = {r.id: r for r in rows}
    folder = labels(
        tmp_path / "labels",
        said(by["c"], reason="skipped"),
        said(by["b"], 1, 0, judge="ann", grade=SLIGHTLY_WORSE),
        said(by["b"], 0, 1, judge="ben", grade=BETTER),
        said(by["b"], 0, 1, judge="eve", grade=SLIGHTLY_BETTER),
        said(by["a"], 0, 0, grade=TIE),
    )
    verdicts = judge_rows(panel({"kind": "people"}), rows, Evidence(labels=folder), 0, run)
    assert [(v.ranks, v.grade) for v in verdicts.settled] == [((0, 0), TIE), ((0, 1), SLIGHTLY_BETTER), ((), 0), ((), 0)]
    assert '{"skipped": 1, "nobody labelled it": 1}' in capsys.readouterr().out
    other = labels(tmp_path / "other", said(row("a", "x", "z"), 0, 1))
    with pytest.raises(ValueError, match="ann judged other completions under the id a than were sampled"):
        judge_rows(panel({"kind": "people", "name": "us"}), rows, Evidence(labels=other), 0, Run(tmp_path, tmp_path, "k"))
    with pytest.raises(ValueError, match="judge 'people' is people, and the stage was given no labels"):
        judge_rows(panel({"kind": "people"}), rows, Evidence(), 0, Run(tmp_path, tmp_path, "k"))


def test_people_judge_what_was_sampled(base: Path, tables: Path, new_run: Callable, tmp_path: Path):
    """The stage in two parts: candidates, labels made of them, preferences. The rankings are of all that was sampled."""
    config = panel({"kind": "people"}).model_copy(update={"ties": "keep", "test_share": 0.0})
    first = new_run("candidates")
    meta = sample(config.candidates, policies={"sft": base}, data=tables, seed=3, run=first)
    asked = read_table(first.out / "candidates.parquet", Candidates)
    assert meta == {"prompts": 6, "candidates": len(asked)} and all(len(set(c.completions)) == len(c.completions) > 1 for c in asked)
    assert {writer for c in asked for writer in c.writers} == {"sft@1.0"}
    labelled = [said(c, *(0 if text == min(c.completions) else 1 for text in c.completions)) for c in asked[:-1]]
    second = new_run("preferences")
    folder = labels(tmp_path / "labels", *labelled)
    meta = collect(config, policies={}, data=tables, candidates=first.out, labels=folder, seed=3, run=second)
    assert (meta["pairs"], meta["unjudged_prompts"], meta["abstentions"], meta["labels"] > 0) == (len(labelled), 1, 1, True)
    pairs = read_table(second.out / "preferences.parquet", Preference)
    assert {p.prompt: p.chosen for p in pairs} == {j.prompt: min(j.completions) for j in labelled} and {p.margin for p in pairs} == {0.0}
    rankings = read_table(second.out / "rankings.parquet", Ranking)
    samples = {c.prompt: c.completions for c in read_table(first.out / "samples.parquet", Candidates)}
    assert all(len(r.completions) == 4 and r.completions == samples[r.prompt] for r in rankings) and len(rankings) == len(labelled)
    assert read_table(second.out / "ties.parquet", Tie), "the losers of a prompt are tied"


def test_in_one_part_or_in_two_the_samples_are_the_same(base: Path, tables: Path, new_run: Callable, reward_folder: Path):
    config = panel({"kind": "reward_model"})
    one, candidates, two = new_run("one"), new_run("candidates"), new_run("two")
    collect(config, policies={"sft": base}, data=tables, reward=reward_folder, seed=3, run=one)
    sample(config.candidates, policies={"sft": base}, data=tables, seed=3, run=candidates)
    collect(config, policies={}, data=tables, reward=reward_folder, candidates=candidates.out, seed=3, run=two)
    for name in ("rankings", "preferences", "labels", "judgements"):
        assert (one.out / f"{name}.parquet").read_bytes() == (two.out / f"{name}.parquet").read_bytes()


def test_nothing_to_ask_is_an_error(base: Path, tables: Path, run: Run):
    config = panel({"kind": "people"}).model_copy(update={"sampling": SamplingConfig(max_tokens=6, temperature=0.0)})
    with pytest.raises(ValueError, match="no prompt of 6 has two different completions"):
        sample(config.candidates, policies={"sft": base}, data=tables, seed=3, run=run)


# Labelled sets


def test_a_labelled_set_as_candidates_and_judge(tables: Path, run: Run):
    """Ten pairs and eight rankings; sides are shuffled, labels and margins come back, held-out prompts leave training."""
    rows, known = labelled_sets(tables, seed=0)
    assert len(rows) == len(known) == 18 and 0 < sum(j.ranks == (1, 0) for j in known[:10]) < 10
    config = PreferencesConfig(writers=[], judges=[JudgeConfig(kind="dataset")], test_share=0.2)
    meta = collect(config, policies={}, data=tables, seed=0, run=run)
    given = {(p.prompt, p.chosen, p.rejected, p.margin) for p in read_table(tables / "preferences.parquet", Preference)}
    train, test = (read_table(run.out / name, Preference) for name in ("preferences.parquet", "test_preferences.parquet"))
    assert {(p.prompt, p.chosen, p.rejected, p.margin) for p in (*train, *test) if p.rejected == "bad"} <= given
    assert not {p.prompt for p in train} & {p.prompt for p in test} and meta["abstentions"] == 0
    assert len(test) == meta["test_pairs"] == 3, "of the last four of eighteen one is tied from end to end"


@pytest.mark.usefixtures("functions")
def test_a_set_and_a_function_vote_on_the_set_and_share_what_is_sampled(tmp_path: Path, new_run: Callable):
    data = tmp_path / "data"
    data.mkdir()
    pairs = [Preference(f"{i}", "toy", (Message("user", f"{i}?"),), "1", "2") for i in range(5)]
    write_table(data / "preferences.parquet", pairs)
    rows, known = labelled_sets(data, 0)
    evidence = Evidence(dataset=known)
    other = row("sampled", "1", "2")
    vote = judge_rows(panel(function("larger"), {"kind": "dataset"}), [*rows, other], evidence, 0, new_run("a"))
    assert [v.ranks for v in vote.settled[:5]] == [(0, 0)] * 5 and vote.settled[5].ranks == (1, 0)
    share = judge_rows(panel(function("larger"), {"kind": "dataset"}, combine="share"), [*rows, other], evidence, 0, new_run("b"))
    assert [v.ranks for v in share.settled[:5]] == [j.ranks for j in known] and share.settled[5].ranks == (1, 0)
    with pytest.raises(ValueError, match="holds neither preferences nor rankings"):
        labelled_sets(tmp_path, 0)


def test_equal_texts_of_a_given_ranking_are_one(tmp_path: Path):
    write_table(
        tmp_path / "rankings.parquet", [Ranking("r", "toy", (Message("user", "?"),), ("a", "b", "a", "c"), (2, 1, 0, 3), (1, 2, 3, 0))]
    )
    ((given,), (known,)) = labelled_sets(tmp_path, 0)
    assert given.completions == ("a", "b", "c") and known.ranks == (1, 0, 2) and known.scores == (1.0, 2.0, 0.0)


# From a person's grade to the loss


def test_a_grade_reaches_the_loss_as_its_margin(base: Path, tables: Path, new_run: Callable, tmp_path: Path):
    """One pair graded slightly better, margin 1/4: the loss is -log sigmoid(r_chosen - r_rejected - 1/4)."""
    first, second = new_run("candidates"), new_run("preferences")
    config = panel({"kind": "people"}).model_copy(update={"samples_per_prompt": 2, "margin_slightly_better": 0.25, "test_share": 0.0})
    sample(config.candidates, policies={"sft": base}, data=tables, seed=0, run=first)
    asked = read_table(first.out / "candidates.parquet", Candidates)[0]
    folder = labels(tmp_path / "labels", said(asked, 1, 0, grade=SLIGHTLY_WORSE))
    collect(config, policies={}, data=tables, candidates=first.out, labels=folder, seed=0, run=second)
    (pair,) = read_table(second.out / "preferences.parquet", Preference)
    assert (pair.chosen, pair.rejected, pair.margin) == (asked.completions[1], asked.completions[0], 0.25)
    model = new_scalar(base, 0)
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))
    for loss, margin in (("bradley_terry", 0.25), ("k_wise", 0.25)):
        settings = RewardModelConfig(loss=loss, use_margin=True)
        algorithm, groups, _ = reward_model._algorithm(settings, model, base, second.out, 0, new_run(loss))
        (batch,) = algorithm.batches(0)
        value, sums = algorithm.loss(batch)
        gap = merge([sums])["reward_model/margin"]
        assert abs(gap) > 0.01 and len(groups) == 1
        assert float(value.detach()) == pytest.approx(float(-torch.nn.functional.logsigmoid(torch.tensor(gap - margin))), abs=1e-6)


@pytest.mark.usefixtures("functions")
def test_a_killed_judge_goes_on_where_it_was(tmp_path: Path, new_run: Callable, monkeypatch: pytest.MonkeyPatch):
    rows = [row(f"r{i}") for i in range(5)]
    config = panel(function("larger")).model_copy(update={"chunk_prompts": 2})
    wanted = judge_rows(config, rows, Evidence(), 0, new_run("a")).settled
    assert len(list(new_run("a").checkpoints.glob("judged-0-*.json"))) == 3
    monkeypatch.setattr("models.panel_judges.TextJudging.__call__", lambda *a, **k: pytest.fail("judged again"))
    assert judge_rows(config, rows, Evidence(), 0, new_run("a")).settled == wanted
    kept = json.loads((new_run("a").checkpoints / "judged-0-00000.json").read_text())
    assert Judgement.from_row(kept[0]["rows"][0]).judge == "larger"
