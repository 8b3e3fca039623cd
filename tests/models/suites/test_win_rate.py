"""Win rates: what counts, both orders, every kind of judge, and the stage."""

import json
from pathlib import Path

import pytest

from data.judgements import Candidates
from data.measures import read_suite
from data.records import Message
from models.configs.ai_judge import AIJudgeConfig
from models.configs.base_model import ScratchConfig
from models.configs.preferences import JudgeConfig
from models.configs.sampling import SamplingConfig
from models.configs.suites import PromptsConfig
from models.configs.win_rate import WinRateConfig
from models.judging.local import LocalJudge
from models.judging.verdicts import Answer
from models.panel import Evidence, load_judging
from models.scratch import make_scratch
from models.suites.win_rate import Compared, judged, measure, suite_of

SHORT = SamplingConfig(max_tokens=8)
AI = JudgeConfig(kind="language_model", ai=AIJudgeConfig(rubric="Better wins."))


CALLABLE = JudgeConfig(kind="callable", callable="tests_win_rate_judges:lengths")


@pytest.fixture
def judges(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that configurations can name."""
    (tmp_path / "tests_win_rate_judges.py").write_text(
        "import itertools\n\ndef lengths(prompt, text):\n    return len(text)\n\n"
        "def raises(prompt, text):\n    raise RuntimeError('no')\n\n"
        "def grows(prompt, text, count=itertools.count()):\n    return 1e-6 * next(count)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def pair(number: int, first: str = "one", second: str = "two") -> Candidates:
    return Candidates(f"d{number}", "toy", (Message("user", f"{number}?"),), (first, second), ("policy", "reference"))


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reader")
    model, tokenizer = make_scratch(ScratchConfig(hidden_size=16, intermediate_size=16, layers=1, max_position=4096), 0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_measures_by_hand():
    compared = [Compared(1, "", True), Compared(0, "", False), Compared(-1, "", True), Compared(None, "unreadable"), Compared(1)]
    found = suite_of(WinRateConfig(), list("abcde"), [pair(i) for i in range(5)], compared, [(4, 2)] * 4 + [(2, 4)], 0)
    measures = {measure.name: measure for measure in found.measures}
    assert measures["win_rate"].values == {"a": 1, "b": 0.5, "c": 0, "d": 0.5, "e": 1}
    assert measures["win_rate"].mean == pytest.approx(0.6)
    assert measures["abstained"].mean == pytest.approx(0.2) and measures["abstained"].better == "lower"
    assert measures["consistency"].mean == pytest.approx(2 / 3) and not measures["consistency"].values
    assert measures["length_difference_tokens"].mean == pytest.approx(6 / 5)
    assert 0 < measures["win_rate_length_controlled"].low < measures["win_rate_length_controlled"].high < 1
    assert "abstentions (1)" in found.notes[0]


def test_extrapolation_over_lengths_is_said():
    compared = [Compared(1)] * 2
    lengths = ([(2, 1)] * 2, [(2, 1), (1, 2)])
    noted = [suite_of(WinRateConfig(), ["a", "b"], [pair(0), pair(1)], compared, gaps, 0).notes for gaps in lengths]
    assert ["extrapolated" in " ".join(notes) for notes in noted] == [True, False]


@pytest.mark.parametrize("judge", ["lengths", "grows"])
def test_a_policy_beside_itself_ties(base, tables, run, judges, judge):
    """The same seed gives the same answers; a score that differs in its last digits does not tell them apart."""
    config = WinRateConfig(judge=JudgeConfig(kind="callable", callable=f"tests_win_rate_judges:{judge}"), sampling=SHORT, resamples=100)
    measure(config, policy=base, reference=base, data=tables, seed=0, run=run)
    suite = read_suite(run.out)
    assert set(suite.measures[0].values.values()) == {0.5}
    assert {row["verdict"] for row in suite.items} == {0}
    assert all(row["answer"] == row["reference"] for row in suite.items)


def test_a_score_decides_and_is_reported(base, other, tables, run, judges, journal):
    config = WinRateConfig(judge=CALLABLE, sampling=SHORT, resamples=100, chunk_prompts=2)
    meta = measure(config, policy=base, reference=other, data=tables, seed=0, run=run)
    suite = read_suite(run.out)
    assert (suite.suite, suite.kind, meta["items"]) == ("win_rate", "win_rate", 5)
    for row in suite.items:
        gap = len(row["answer"]) - len(row["reference"])
        assert suite.measures[0].values[row["id"]] == (1 if gap > 0 else 0 if gap < 0 else 0.5)
    assert "no order that could matter" in " ".join(suite.notes)
    ((_, metrics),) = journal(run)
    assert metrics["suite/win_rate"] == suite.measures[0].mean and "suite/win_rate_length_controlled_low" in metrics


def test_a_reward_model_judges(base, other, tables, run, reward_folder):
    config = WinRateConfig(judge=JudgeConfig(kind="reward_model"), sampling=SHORT, resamples=100)
    measure(config, policy=base, reference=other, data=tables, reward=reward_folder, seed=0, run=run)
    assert set(read_suite(run.out).measures[0].values.values()) <= {0.0, 0.5, 1.0}


def test_the_verifier_judges_where_prompts_have_one(base, other, tables, run):
    measure(WinRateConfig(sampling=SHORT, resamples=100), policy=base, reference=other, data=tables, seed=0, run=run)
    assert read_suite(run.out).measures[0].mean == 0.5, "neither can add"


def test_reference_texts_come_from_the_rows(base, run, judges, tmp_path):
    rows = [{"messages": [{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": "x" * 500}]} for i in range(3)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, [*rows, rows[0]])))
    config = WinRateConfig(against="texts", prompts=PromptsConfig(kind="file", name=str(file)), judge=CALLABLE, sampling=SHORT)
    measure(config, policy=base, seed=0, run=run)
    suite = read_suite(run.out)
    assert len(suite.items) == 3 and {row["reference"] for row in suite.items} == {"x" * 500}
    assert suite.measures[0].mean == 0 and suite.measures[2].mean < -400


def test_both_orders_of_a_judge_that_compares(reader, run, monkeypatch):
    """It likes the first place, but an answer with x wins from either."""

    def read(self, questions, *, seed, tick):
        return [Answer(-2 if "x" in question.second else 2) for question in questions]

    monkeypatch.setattr(LocalJudge, "__call__", read)
    judge = load_judging(AI, Evidence(language_model=reader), run)
    pairs = [pair(0, "ax", "b"), pair(1, "a", "bx"), pair(2, "a", "b"), pair(3, "same", "same"), pair(4, "fine", "")]
    compared, counts = judged(judge, pairs, 2, 0, run)
    assert [each.verdict for each in compared] == [1, -1, 0, 0, 1]
    assert [each.consistent for each in compared] == [True, True, False, None, None], "the last two needed no judge"
    assert counts["judge/pairs"] == 5 and counts["judge/disagreements"] == 1


def test_a_judge_that_abstains_throughout_is_an_error(base, other, tables, run, judges):
    config = WinRateConfig(judge=JudgeConfig(kind="callable", callable="tests_win_rate_judges:raises"), sampling=SHORT)
    with pytest.raises(ValueError, match="abstained from all 5 comparisons"):
        measure(config, policy=base, reference=other, data=tables, seed=0, run=run)


def test_what_is_missing_is_named(base, tables, run, tmp_path):
    with pytest.raises(ValueError, match="given no reference"):
        measure(WinRateConfig(sampling=SHORT), policy=base, data=tables, seed=0, run=run)
    with pytest.raises(ValueError, match="the suite win_rate asks the held-out prompts, and it is given no data"):
        measure(WinRateConfig(sampling=SHORT), policy=base, reference=base, seed=0, run=run)
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a?"}')
    texts = WinRateConfig(against="texts", prompts=PromptsConfig(kind="file", name=str(tmp_path / "rows.jsonl")), sampling=SHORT)
    with pytest.raises(ValueError, match="has no answer to 'a\\?'"):
        measure(texts, policy=base, seed=0, run=run)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"judge": {"kind": "people"}}, "labelled before"),
        ({"against": "texts"}, "hold no answers"),
        ({"prompts": {"kind": "file"}}, "need the name"),
        ({"prompts": {"name": "x.csv"}}, "others have none"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        WinRateConfig.model_validate(fields)


def test_a_file_is_part_of_the_key(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("1")
    config = PromptsConfig(kind="file", name=str(file))
    before = config.cache_extra()
    file.write_text("2")
    assert config.cache_extra() != before


def test_a_second_attempt_takes_over_what_was_answered_and_judged(base, other, tables, new_run, judges):
    config = WinRateConfig(judge=CALLABLE, sampling=SHORT, resamples=100, chunk_prompts=2)
    inputs = {"policy": base, "reference": other, "data": tables, "seed": 0}
    run = new_run()
    measure(config, **inputs, run=run)
    whole = (run.out / "suite.json").read_text()
    assert len(list(run.checkpoints.glob("*-0*.json"))) == 9, "three chunks each of answers, of the reference's, of verdicts"
    for kept in ("answers-00001", "reference-00000", "compared-00002"):
        (run.checkpoints / f"{kept}.json").unlink()
    measure(config, **inputs, run=new_run())
    assert (run.out / "suite.json").read_text() == whole
