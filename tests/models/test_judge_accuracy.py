"""How well a judge agrees with people: measures by hand, and the stage."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.drawing import drawn
from data.intervals import wilson
from data.labelling.agreement import kappa
from models.configs.ai_judge import AIJudgeConfig
from models.configs.base_model import ScratchConfig
from models.configs.judge_accuracy import JudgeAccuracyConfig, JudgeSetConfig
from models.judge_accuracy import Judged, human_agreement, measure, measures, tables_of
from models.judging.local import LocalJudge
from models.judging.verdicts import Answer
from models.scratch import make_scratch


def kappa_of(*pairs: tuple[int, int]) -> float:
    return kappa(np.sum(tables_of(pairs), axis=0))


def test_kappa_of_pairs_by_hand():
    """Observed .8, expected .5."""
    assert kappa_of(*[(1, 1)] * 4, *[(-1, -1)] * 4, (1, -1), (-1, 1)) == pytest.approx(0.6)
    assert kappa_of((1, 1), (0, 0), (-1, -1)) == pytest.approx(1)
    assert kappa_of((1, -1), (-1, 1)) == pytest.approx(-1)


def test_kappa_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    pairs = [(1, 1), (1, 0), (0, 0), (-1, 0), (-1, -1), (1, -1), (-1, -1)]
    assert kappa_of(*pairs) == pytest.approx(metrics.cohen_kappa_score(*zip(*pairs, strict=True)))


def test_agreement_of_people():
    assert human_agreement([(1, 1, -1)]) == pytest.approx(1 / 3)
    assert human_agreement([(1, 1, 1), (0, 1, -1)]) == pytest.approx(1 / 2)
    assert human_agreement([(1,), (0,)]) is None


def test_measures_by_hand():
    """Label, verdict, longer, answer as shown, answer when swapped."""
    judged = [
        Judged(1, 1, 1, 1, -1),  # right, the longer, consistent
        Judged(1, 0, -1, 1, 1),  # a tie, since the first place won twice
        Judged(-1, 1, 1, 1, -1),  # wrong, the longer
        Judged(0, 0, 0, 0, 0),  # both tie, and the judge twice
        Judged(1, None, 1, None, 1),  # nothing said
        Judged(-1, -1, 1),  # settled without asking, the shorter
    ]
    found = measures(judged, 200, 0)
    assert (found["pairs"], found["abstained"], found["ties"]) == (6, 1, 2)
    share = {
        name: wilson(k, n)
        for name, k, n in [("agreement", 3, 6), ("accuracy", 2, 3), ("consistent", 3, 4), ("longer", 2, 3), ("human_longer", 2, 5)]
    }
    for name, interval in share.items():
        assert found[name]["mean"] == interval.mean and found[name]["low"] == pytest.approx(interval.low), name
    assert found["position_first"]["mean"] == pytest.approx((0.5 + 1 + 0.5) / 3)
    assert found["position_first"]["low"] == pytest.approx(wilson(2, 3).low)
    assert found["kappa"]["mean"] == pytest.approx(kappa_of((1, 1), (1, 0), (-1, 1), (0, 0), (-1, -1)))
    assert found["kappa"]["low"] < found["kappa"]["mean"] < found["kappa"]["high"]


def test_nothing_to_measure_is_nothing():
    found = measures([Judged(0, None, 0)], 200, 0)
    assert found["accuracy"] is found["kappa"] is found["position_first"] is found["longer"] is None
    assert found["agreement"]["mean"] == 0


def test_rows_are_drawn_by_the_seed():
    pairs = list(range(50))
    assert drawn(pairs, 0, 1) == drawn(pairs, 99, 1) == pairs
    few = drawn(pairs, 10, 1)
    assert few == sorted(few) == drawn(pairs, 10, 1) != drawn(pairs, 10, 2) and len(few) == 10


@pytest.fixture
def reader(tmp_path: Path) -> Path:
    model, tokenizer = make_scratch(ScratchConfig(hidden_size=16, intermediate_size=16, layers=1, max_position=4096), 0)
    model.save_pretrained(tmp_path / "reader")
    tokenizer.save_pretrained(tmp_path / "reader")
    return tmp_path / "reader"


@pytest.fixture
def config(tmp_path: Path) -> JudgeAccuracyConfig:
    """Ten pairs, of which people always prefer the first, the longer one of which is the first in seven."""
    rows = [{"input": f"Question {i}?", "output_1": "x" * (9 if i < 7 else 3), "output_2": "y" * 6, "label": 1} for i in range(10)]
    (tmp_path / "natural.json").write_text(json.dumps(rows))
    return JudgeAccuracyConfig(
        sets=[JudgeSetConfig(kind="llmbar", path=str(tmp_path / "natural.json"))],
        judge=AIJudgeConfig(rubric="Better wins."),
        resamples=200,
        chunk_pairs=4,
    )


def test_the_stage_measures_the_judge_beside_those_that_read_nothing(config, reader, run, monkeypatch, journal):
    """A judge that prefers the first place, but sees through it where the answer is of six letters."""

    def read(self, questions, *, seed, tick):
        return [Answer(-2 if question.second.startswith("x") and len(question.second) == 3 else 2) for question in questions]

    monkeypatch.setattr(LocalJudge, "__call__", read)
    meta = measure(config, policy=reader, cache=Path("/none"), seed=0, run=run)
    content = json.loads((run.out / "judge_accuracy.json").read_text())
    own, longer, coin = content["rows"]
    assert meta == {"rows": 3} and [row["judge"] for row in content["rows"]] == ["ai:policy", "longer", "coin"]
    assert (own["agreement"]["mean"], own["ties"], own["accuracy"]["mean"]) == (0.3, 7, 1.0), "three decided, all for the first"
    assert own["position_first"]["mean"] == pytest.approx((7 * 1 + 3 * 0.5) / 10)
    assert (longer["agreement"]["mean"], longer["longer"]["mean"], longer["human_longer"]["mean"]) == (0.7, 1.0, 0.7)
    assert coin["ties"] == 0 and own["human_agreement"] is None
    assert own["subsets"] == {"natural": own["agreement"]}
    assert content["markdown"].splitlines()[2].startswith("| llmbar | ai:policy | 10 | 7 | 0 | 0.30 [")
    ((_, metrics),) = journal(run)
    assert metrics["judge_accuracy/llmbar"] == 0.3
    assert (metrics["judge/pairs"], metrics["judge/disagreements"], metrics["judge/unreadable"]) == (10, 7, 0)


def test_a_killed_stage_ends_as_one_that_was_not(config, reader, stage_process, tmp_path):
    inputs = {"policy": reader, "cache": tmp_path / "answers.sqlite"}
    whole = stage_process(tmp_path / "whole", "models.judge_accuracy:measure", config, inputs)
    whole.run()
    killed = stage_process(tmp_path / "killed", "models.judge_accuracy:measure", config, inputs)
    killed.kill("chunk:2")
    killed.run()
    assert killed.digests() == whole.digests() and killed.history() == whole.history()
