"""Measuring a reward model as a stage: planted rewards, what it has seen is left out, every kind of model, the curve and the page."""

import json
import math
import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from data.configs import SourceConfig
from data.judgements import Judgement
from data.measures import Measure
from data.packing import Group
from data.records import Message, Preference, record_id
from data.tables import write_table
from models import reward_evaluation
from models.compared import compare_completions, load_comparer, parts_of
from models.configs.best_of_n import BestOfNConfig
from models.configs.ensembles import EnsembleConfig
from models.configs.evaluate_reward import EvaluateRewardConfig
from models.configs.judge_accuracy import JudgeSetConfig
from models.configs.sampling import SamplingConfig
from models.heads import RewardRule, new_scalar, save_scalar
from models.preference_model import new_preference_model, save_preference_model
from models.reward_evaluation import evaluate, metrics_of
from models.run import Run
from models.training.reward_ensemble import combine

CONFIG = EvaluateRewardConfig(resamples=200, length_bins=4, chunk_pairs=7)


def user(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def pair(prompt: str, chosen: str, rejected: str, margin: float = 0.0) -> Preference:
    return Preference(record_id(prompt, chosen, rejected), "toy", user(prompt), chosen, rejected, margin)


@pytest.fixture
def preferences(tmp_path: Path) -> Path:
    """Forty held-out pairs, of which in every other one the chosen answer is the longer; ten to train on, one of them for all."""
    folder = tmp_path / "preferences"
    folder.mkdir()
    held_out = [pair(f"question {n}", "y" * (3 + (n % 5) * (n % 2)), "n" * (3 + (n % 5) * (1 - n % 2)), n % 3) for n in range(40)]
    write_table(folder / "preferences.parquet", [pair(f"trained {n}", "yes", "no") for n in range(10)])
    write_table(folder / "test_preferences.parquet", held_out)
    return folder


class Planted:
    """A reward that is a function of a completion's tokens."""

    rule = RewardRule(deviation=1.0)

    def __init__(self, reward: Callable[[Sequence[int]], float]) -> None:
        self.reward = reward

    def score(self, groups: Sequence[Group], max_tokens: int) -> torch.Tensor:
        return torch.tensor([self.reward(completion) for group in groups for completion in group.completions])


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch, reward_folder: Path, preferences: Path, run: Run, read_json: Callable) -> Callable[..., Any]:
    """Evaluates a planted reward and returns the measures by name, and the whole report."""

    def evaluated(reward: Callable[[Sequence[int]], float], config: EvaluateRewardConfig = CONFIG, **inputs: Path) -> tuple[dict, dict]:
        monkeypatch.setattr(reward_evaluation, "load_comparer", lambda folder, device: Planted(reward))
        evaluate(config, reward=reward_folder, seed=0, run=run, **{"preferences": preferences} | inputs)
        report = read_json(run.out / "reward_evaluation.json")
        return {m["name"]: Measure(**m) for m in report["measures"]}, report

    return evaluated


# Planted rewards


def test_a_reward_that_loves_length(plant: Callable[..., Any]):
    found, report = plant(len)
    assert found["length_slope"].low > 0 and found["length_slope"].mean == pytest.approx(100)
    assert found["accuracy/length=chosen_shorter"].mean == 0 and found["accuracy/length=chosen_longer"].mean == 1
    assert found["accuracy/length=equal"].mean == 0
    margins = [row["margin"]["mean"] for row in report["margin_by_length"]]
    assert margins == sorted(margins) and margins[0] < 0 < margins[-1]


def test_a_reward_that_is_right(plant: Callable[..., Any], tokenizer: Any):
    yes = tokenizer.encode("y", add_special_tokens=False)[0]
    found, report = plant(lambda tokens: 10.0 * (tokens[0] == yes))
    assert found["accuracy"].mean == 1 and found["accuracy"].low > 0.9 and found["brier"].mean < 1e-6
    assert found["length_slope"].mean == pytest.approx(0, abs=1e-9) and found["margin_at_equal_length"].mean == pytest.approx(10)
    assert found["accuracy_over_length"].low > 0.2
    assert [row["pairs"] for row in report["reliability"]] == [40] and report["reliability"][0]["accuracy"] == 1
    assert found["accuracy/margin=positive"].mean == 1 and "accuracy/source=toy" not in found, "all pairs are of one source"


def test_a_reward_that_knows_nothing(plant: Callable[..., Any]):
    found, _ = plant(lambda tokens: 0.0)
    assert found["brier"].mean == 0.25 and found["accuracy"].mean == 0 and "length_correlation" not in found


def test_a_reward_that_is_no_number(plant: Callable[..., Any]):
    with pytest.raises(ValueError, match="gives 40 of 40 pairs no finite reward"):
        plant(lambda tokens: math.nan)


# What is measured on


def test_a_file_in_the_form_of_rewardbench(plant: Callable[..., Any], tmp_path: Path):
    rows = [{"prompt": f"bench {n}", "chosen": "n" * n, "rejected": "y", "subset": ["easy", "hard"][n > 6]} for n in range(2, 11)]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, {**rows[0], "rejected": "nn"}]))
    config = CONFIG.model_copy(update={"sets": [SourceConfig(kind="file", name=str(tmp_path / "bench.jsonl"))]})
    found, report = plant(len, config)
    assert report["pairs"] == 49
    assert len(found["accuracy/subset=easy"].values) == 5 and found["accuracy/subset=hard"].mean == 1
    assert found["accuracy/source=toy"].mean < 0.5
    assert report["notes"] == [f"rows of {tmp_path / 'bench.jsonl'} left out: 1 chosen_equals_rejected"]
    assert config.cache_extra().keys() == {"sets.0/bench.jsonl"}


def test_what_it_was_trained_on_is_left_out_of_all(plant: Callable[..., Any], tmp_path: Path):
    rows = [{"prompt": prompt, "chosen": "yy", "rejected": "n"} for prompt in ("Trained  1", "trained 2", "new")]
    (tmp_path / "bench.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    labels = [judgement("trained 3", (0, 1)), judgement("new", (0, 1))]
    write_table(tmp_path / "judgements.parquet", labels)
    config = CONFIG.model_copy(update={"sets": [SourceConfig(kind="file", name=str(tmp_path / "bench.jsonl"))], "max_tokens": 60})
    found, report = plant(len, config, labels=tmp_path)
    assert report["pairs"] == 41 and report["people"] == [{"people": "labels", "pairs": 1, "votes": 1}]
    left_out = (("held-out pairs", 2), ("pairs of labels", 1))
    assert report["notes"] == [f"{what} left out: {count} of a prompt trained on" for what, count in left_out]
    assert found["reward_agreement/people=labels"].mean == 1


def judgement(prompt: str, ranks: tuple[int, ...], judge: str = "person:ada") -> Judgement:
    return Judgement(record_id(prompt), "toy", judge, user(prompt), ("longer", "short"), ranks)


def test_agreement_with_people_beside_that_of_people(plant: Callable[..., Any], tmp_path: Path):
    answers = {"input": "", "response1": "a" * 9, "response2": "b"}
    votes = [{"annotator1": 1, "annotator2": n, "annotator3": 1} for n in (1, 2, 1, 0)]
    (tmp_path / "testset.json").write_text(json.dumps([{"instruction": f"do {i}", **answers, **own} for i, own in enumerate(votes)]))
    config = CONFIG.model_copy(update={"people": [JudgeSetConfig(kind="pandalm", path=str(tmp_path / "testset.json"))]})
    write_table(tmp_path / "judgements.parquet", [judgement(f"q{n}", (1, 0), f"person:{who}") for n in range(3) for who in ("ada", "bob")])
    found, report = plant(len, config, labels=tmp_path)
    assert found["reward_agreement/people=pandalm"].mean == pytest.approx(10 / 12)
    assert found["human_agreement/people=pandalm"].mean == pytest.approx((3 + 1 + 3 + 1) / 12)
    assert found["reward_agreement/people=labels"].mean == 0 and found["human_agreement/people=labels"].mean == 1
    assert [one["pairs"] for one in report["people"]] == [4, 3]
    assert "| pandalm | 4 | 12 |" in report["markdown"]


def test_people_alone_are_enough_and_nothing_is_not(plant: Callable[..., Any], reward_folder: Path, run: Run, tmp_path: Path):
    write_table(tmp_path / "judgements.parquet", [judgement(f"q{n}", (0, 1)) for n in range(3)])
    found, report = plant(len, preferences=None, labels=tmp_path)
    assert report["pairs"] == 0 and found["people_accuracy/people=labels"].mean == 1
    evaluate(CONFIG, reward=reward_folder, seed=0, run=run)
    nothing = json.loads((run.out / "reward_evaluation.json").read_text())
    assert nothing["measures"] == [] and [note[:20] for note in nothing["notes"]] == ["Nothing was measured"]


def test_too_long_pairs_are_counted(plant: Callable[..., Any], preferences: Path):
    write_table(preferences / "test_preferences.parquet", [pair("q", "yes", "no"), pair("long", "y" * 300, "no")])
    _, report = plant(len, CONFIG.model_copy(update={"max_tokens": 100}))
    assert report["pairs"] == 1 and report["notes"] == ["held-out pairs left out: 1 longer than 100 tokens"]


# Models


def folders(base: Path, other: Path, tmp_path: Path, new_run: Callable[..., Run]) -> dict[str, Path]:
    found = {}
    for number, parent in enumerate((base, other)):
        model = new_scalar(parent, seed=number)
        model.rule = RewardRule(mean=0.5 * number, deviation=1.0 + number, trained_pairs=3)
        found[f"scalar {number}"] = tmp_path / f"scalar-{number}"
        save_scalar(model, parent, found[f"scalar {number}"])
    run = new_run("ensemble")
    combine(EnsembleConfig(aggregate="worst"), members=[found["scalar 0"], found["scalar 1"]], seed=0, run=run)
    found["preference"] = tmp_path / "preference"
    save_preference_model(new_preference_model(base, 2, 0), base, found["preference"])
    return found | {"ensemble": run.out}


def test_every_kind_of_model_is_compared_in_its_own_way(base: Path, other: Path, tmp_path: Path, new_run: Any, random_groups: Any):
    groups = random_groups(6, 2)
    kinds = {name: load_comparer(folder) for name, folder in folders(base, other, tmp_path, new_run).items()}
    found = {name: compare_completions(model, groups, 64) for name, model in kinds.items()}
    for name in ("scalar 0", "scalar 1"):
        model = kinds[name]
        torch.testing.assert_close(found[name].p_P, torch.sigmoid(model.rule.deviation * found[name].margin_P))  # type: ignore[union-attr]
    torch.testing.assert_close(found["ensemble"].p_P, (found["scalar 0"].p_P + found["scalar 1"].p_P) / 2)
    worst = torch.minimum(*(kinds[name].score(groups, 64).double() for name in ("scalar 0", "scalar 1")))  # type: ignore[union-attr]
    torch.testing.assert_close(found["ensemble"].margin_P, worst[::2] - worst[1::2], rtol=0, atol=1e-6)
    swapped = compare_completions(kinds["preference"], [Group(g.prompt, g.completions[::-1]) for g in groups], 64)
    torch.testing.assert_close(swapped.p_P, 1 - found["preference"].p_P)
    assert all(parts_of(model) == {"train"} for model in kinds.values())


@pytest.mark.parametrize("kind", ["scalar 0", "ensemble", "preference"])
def test_every_kind_of_model_has_a_report(
    kind: str, base: Path, other: Path, tmp_path: Path, new_run: Callable[..., Run], run: Run, preferences: Path, journal: Callable
):
    folder = folders(base, other, tmp_path, new_run)[kind]
    meta = evaluate(CONFIG, reward=folder, preferences=preferences, seed=0, run=run)
    ((step, metrics),) = journal(run)
    assert step == 0 and metrics["reward_evaluation/accuracy"] == meta["accuracy"] and meta["pairs"] == 40
    if kind != "ensemble":  # whose probability is its members' mean, and whose reward their aggregate
        assert metrics["eval/accuracy"] == meta["accuracy"]
    assert metrics["eval/calibration_error"] == pytest.approx(metrics["reward_evaluation/calibration_error"])
    assert metrics["eval/brier"] == pytest.approx(metrics["reward_evaluation/brier"])
    assert "reward_evaluation/accuracy/length:chosen_longer_low" in metrics
    assert sorted(path.name for path in run.checkpoints.glob("pairs-*")) == [f"pairs-{n:05d}.json" for n in range(6)]


def test_a_model_of_the_held_out_pairs_is_measured_on_the_others(base: Path, preferences: Path, tmp_path: Path, run: Run, read_json: Any):
    model = new_scalar(base, seed=0)
    model.rule = RewardRule(pairs="test")
    save_scalar(model, base, tmp_path / "held-out")
    evaluate(CONFIG, reward=tmp_path / "held-out", preferences=preferences, seed=0, run=run)
    report = read_json(run.out / "reward_evaluation.json")
    assert report["pairs"] == 10 and report["parts"] == ["test"] and report["notes"] == []


def test_best_of_n_is_that_of_its_own_stage(base: Path, tables: Path, reward_folder: Path, preferences: Path, run: Run, read_json: Any):
    curve = BestOfNConfig(samples=4, truth="none", sampling=SamplingConfig(max_tokens=3), resamples=200)
    config = CONFIG.model_copy(update={"best_of_n": curve})
    evaluate(config, reward=reward_folder, preferences=preferences, policy=base, data=tables, seed=0, run=run)
    report = read_json(run.out / "reward_evaluation.json")
    assert [point["n"] for point in report["best_of_n"]] == [1, 2, 4]
    scores = [point["score"]["mean"] for point in report["best_of_n"]]
    assert scores == sorted(scores) and report["best_of_n"] == read_json(run.out / "best_of_n.json")["curve"]
    assert "| n | KL, nats | reward |" in report["markdown"] and (run.out / "reward_evaluation.md").read_text() == report["markdown"]


def test_a_curve_that_cannot_be_made_is_refused(base: Path, other: Path, preferences: Path, tables: Path, tmp_path: Path, new_run: Any):
    found, run = folders(base, other, tmp_path, new_run), new_run()
    with pytest.raises(ValueError, match="needs a policy and its data"):
        evaluate(CONFIG, reward=found["scalar 0"], preferences=preferences, policy=base, seed=0, run=run)
    with pytest.raises(ValueError, match="is a preference model, which picks none of n"):
        evaluate(CONFIG, reward=found["preference"], preferences=preferences, policy=base, data=tables, seed=0, run=run)


def test_settings_that_measure_no_reward_model_are_refused():
    with pytest.raises(ValidationError, match="reasoning_gym task, which has right answers and no pairs"):
        EvaluateRewardConfig(sets=[SourceConfig()])
    with pytest.raises(ValidationError, match=r"best_of_n\.pick is verifier"):
        EvaluateRewardConfig(best_of_n=BestOfNConfig(pick="verifier"))


def test_names_of_metrics_are_such_as_mlflow_takes():
    """Letters, digits and ``_-. :/``, and a path that says nothing in two ways."""
    hostile = Measure("accuracy/subset=a (b) | <c>=d/../e//f\n", 0.5, 0.25, 0.75)
    names = list(metrics_of([hostile, Measure("accuracy/source=/tmp/x.jsonl", 0.5, 0.25, 0.75)]))
    assert "reward_evaluation/accuracy/source:_tmp_x.jsonl" in names
    assert all(re.fullmatch(r"[/\w.\- :]*", name) and posixpath.normpath(name) == name for name in names)
