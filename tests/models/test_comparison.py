"""The table at the end, by hand: the same prompts for all, ties count half, intervals over prompts."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from data.intervals import paired_bootstrap
from models.comparison import as_markdown, cell, compare, row_of
from models.configs.evaluation import ComparisonConfig
from models.run import Run

CONFIG = ComparisonConfig(baseline="base", resamples=200)


def answer(score: float, text: str = "t", **more: Any) -> dict[str, Any]:
    return {"n_tokens": len(text), "text": text, "score": score, "correct": score == 1.0, "finished": True, "kl_nats": 0.5, **more}


def rows(scores: Sequence[Sequence[float]], greedy: Sequence[float] | None = None, **more: Any) -> list[dict[str, Any]]:
    """Evaluation rows with these scores of the sampled answers, prompt by prompt."""
    found: list[dict[str, Any]] = [{"id": f"p{i}", "sampled": [answer(s, f"{i}{s}", **more) for s in own]} for i, own in enumerate(scores)]
    for row, score in zip(found, greedy or [], strict=False):
        row["greedy"] = answer(score)
    return found


BASE = rows([[0.0, 0.5], [1.0, 1.0]], greedy=[0.0, 1.0])
OWN = rows([[1.0, 0.5], [1.0, 0.0]], greedy=[1.0, 1.0])


def test_a_row_by_hand():
    """Win rate: first prompt 1 > 0, 1 > .5, .5 > 0, .5 = .5: 3.5 of 4; second 1 = 1 twice, 0 < 1 twice: 1 of 4."""
    row = row_of("own", OWN, BASE, CONFIG, seed=1)
    assert row["accuracy"]["mean"] == 0.5 and row["accuracy_gain"]["mean"] == 0.0
    assert row["win_rate"]["mean"] == pytest.approx((3.5 / 4 + 1 / 4) / 2)
    assert row["accuracy_greedy"]["mean"] == 1.0
    assert (row["kl_nats"], row["completion_tokens"], row["distinct"], row["reward"]) == (0.5, 4.0, 4, None)


def test_intervals_are_paired_over_prompts():
    row = row_of("own", OWN, BASE, CONFIG, seed=1)
    wanted = paired_bootstrap([0.5, 0.5], [0.0, 1.0], seed=1, n=200)
    assert row["accuracy_gain"] == {"mean": wanted.mean, "low": wanted.low, "high": wanted.high}


def test_the_baseline_is_not_compared_with_itself():
    row = row_of("base", BASE, BASE, CONFIG, seed=1)
    assert row["accuracy_gain"] is None and row["win_rate"] is None


def test_greedy_as_the_primary_accuracy():
    config = CONFIG.model_copy(update={"primary": "accuracy_greedy"})
    row = row_of("own", OWN, BASE, config, seed=1)
    assert (row["accuracy"]["mean"], row["win_rate"]["mean"]) == (1.0, 0.75), "one win, one tie"
    assert "accuracy_greedy" not in row


def test_rewards_are_shown_where_every_answer_has_one():
    assert row_of("own", rows([[1.0], [0.0]], reward=2.5), rows([[1.0], [1.0]]), CONFIG, seed=1)["reward"] == 2.5


def test_where_nothing_was_verified_scores_still_win():
    """A reward model was the judge: no answer is right or wrong."""

    def judged(scores: Sequence[Sequence[float]]) -> list[dict[str, Any]]:
        found = rows(scores)
        for one in (c for row in found for c in row["sampled"]):
            one["reward"] = one["score"]
            del one["correct"]
        return found

    row = row_of("own", judged([[0.5], [2.0]]), judged([[0.1], [3.0]]), CONFIG, seed=1)
    assert (row["win_rate"]["mean"], row["reward"]) == (0.5, 1.25) and "accuracy" not in row
    assert "accuracy" not in as_markdown([row], CONFIG, 2)


def test_a_policy_that_answered_other_prompts_is_refused():
    with pytest.raises(ValueError, match="own and base answered different prompts"):
        row_of("own", rows([[1.0]]), BASE, CONFIG, seed=1)


def test_the_table_is_written_for_people_and_for_programs(run: Run, tmp_path: Path, read_json: Callable[[Path], Any]):
    for name, content in {"base": BASE, "own": OWN}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps({"rows": content}))
    folders = {name: tmp_path / name for name in ("base", "own")}
    assert compare(CONFIG, evaluations=folders, seed=0, run=run) == {"policies": 2, "prompts": 2}
    written = read_json(run.out / "comparison.json")
    assert [row["policy"] for row in written["rows"]] == ["base", "own"]
    assert (run.out / "comparison.md").read_text() == written["markdown"]
    header, _, base, own, _, note = written["markdown"].splitlines()
    assert header.startswith("| policy | accuracy | gain over baseline | win rate | KL to baseline") and "reward" not in header
    assert base.count(" - ") == 2 and "0.562 [" in own
    assert note.startswith("2 held-out prompts, the same for every policy; sampled completions; baseline base;")


def test_a_baseline_that_was_not_evaluated_is_named(run: Run, tmp_path: Path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"rows": OWN}))
    with pytest.raises(ValueError, match=r"comparison\.baseline 'base' was not evaluated; there is dpo, ppo"):
        compare(CONFIG, evaluations={"dpo": tmp_path, "ppo": tmp_path}, seed=0, run=run)


def test_cells_by_hand():
    assert [cell(x) for x in (None, 0.12345, 7, {"mean": 0.5, "low": 0.1, "high": 0.9})] == ["-", "0.123", "7", "0.500 [0.100,\u00a00.900]"]
    assert "| reward |" not in as_markdown([{"policy": "a", "reward": None}], CONFIG, 1)
