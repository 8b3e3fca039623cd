"""Right answers: pass@k against all subsets, a policy whose chances are known, the same prompts and noise for all, and resuming."""

import json
import shutil
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from data.configs import SourceConfig
from data.measures import Measure, read_suite
from data.packing import Group, pack
from data.records import Message, Prompt
from data.tables import write_table
from models.configs.sampling import SamplingConfig
from models.configs.verifiable import VerifiableConfig
from models.loading import load_policy
from models.logprobs import token_logps
from models.run import Run
from models.suites.verifiable import measures, pass_at, verifiable

SHORT = SamplingConfig(max_tokens=2)
CONFIG = VerifiableConfig(samples=3, pass_at=[2], sampling=SHORT, resamples=200, chunk_prompts=2)


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_sample(n: int):
    for right in range(n + 1):
        samples = [1.0] * right + [0.0] * (n - right)
        for k in range(1, n + 1):
            found = [any(subset) for subset in combinations(samples, k)]
            assert pass_at(samples, k) == pytest.approx(sum(found) / len(found), abs=1e-12)
    assert 0 <= pass_at([1.0] * n, n) <= 1


def test_of_the_bandit_the_chances_are_known(bandit: Path, run: Run, tmp_path: Path):
    """One question, one token, right with probability p: pass@k is 1 - (1 - p)^k."""
    write_table(tmp_path / "test_prompts.parquet", [Prompt(f"p{i}", "bandit", (Message("user", "a"),), "b", "exact") for i in range(60)])
    config = VerifiableConfig(samples=16, pass_at=[1, 4], sampling=SamplingConfig(max_tokens=1), resamples=200)
    verifiable(config, policy=bandit, data=tmp_path, seed=0, run=run)
    logp_S, _ = token_logps(load_policy(bandit), pack([Group([1], [[2]])]))
    chance = float(logp_S.exp())
    found = {measure.name: measure for measure in read_suite(run.out).measures}
    assert found["accuracy"].mean == pytest.approx(chance, abs=0.04)
    assert found["pass_at_1"].mean == pytest.approx(found["accuracy"].mean) and found["accuracy"].low < chance < found["accuracy"].high
    assert found["pass_at_4"].mean == pytest.approx(1 - (1 - chance) ** 4, abs=0.06)
    assert len(found["accuracy"].values) == 60


def test_measures_by_hand():
    def answers(*right: bool) -> list[dict[str, Any]]:
        return [{"correct": own, "n_tokens": 4 + own, "finished": True, "failed": False} for own in right]

    prompts = [Prompt(f"p{i}", "s", (), metadata={"task": task}) for i, task in enumerate(("x", "y", "x"))]
    found = {m.name: m for m in measures(prompts, [answers(True, False), answers(True, True), answers(False, False)], TWO, 0)}
    assert {name: measure.mean for name, measure in found.items()} == pytest.approx(
        {
            "accuracy": 0.5,
            "accuracy/task=x": 0.25,
            "accuracy/task=y": 1.0,
            "pass_at_2": 2 / 3,
            "pass_at_2/task=x": 0.5,
            "pass_at_2/task=y": 1.0,
            "finished": 1.0,
            "completion_tokens": 4.5,
        }
    )
    assert found["accuracy"].values == {"p0": 0.5, "p1": 1.0, "p2": 0.0}
    assert found["completion_tokens"].better == "neither"


TWO = VerifiableConfig(samples=2, pass_at=[2], resamples=100)


def test_the_same_prompts_and_noise_for_every_policy(base: Path, other: Path, tables: Path, new_run: Callable[..., Run], tmp_path: Path):
    twin = Path(shutil.copytree(base, tmp_path / "twin"))
    found = []
    for name, policy in (("one", base), ("two", twin), ("three", other)):
        run = new_run(name)
        verifiable(CONFIG.model_copy(update={"prompts": 3}), policy=policy, data=tables, seed=5, run=run)
        found.append((run.out / "suite.json").read_text())
    ids = [[item["id"] for item in json.loads(text)["items"]] for text in found]
    assert found[0] == found[1] != found[2] and ids[0] == ids[2] and len(ids[0]) == 3


def test_a_second_attempt_takes_over_finished_chunks(base: Path, tables: Path, new_run: Callable[..., Run]):
    run = new_run()
    verifiable(CONFIG, policy=base, data=tables, seed=5, run=run)
    whole = (run.out / "suite.json").read_text()
    kept = sorted(run.checkpoints.glob("answers-*.json"))
    assert len(kept) == 3
    kept[1].unlink()
    kept[0].write_text(kept[0].read_text().replace('"finished": false', '"finished": true'))
    verifiable(CONFIG, policy=base, data=tables, seed=5, run=new_run())
    again = (run.out / "suite.json").read_text()
    assert again != whole, "the chunk that was kept is read back"
    assert json.loads(again)["items"][2:] == json.loads(whole)["items"][2:]


def test_a_killed_stage_ends_as_one_that_was_not(stage_process: Callable[..., Any], base: Path, tables: Path, tmp_path: Path):
    inputs = {"policy": base, "data": tables}
    calm, killed = (stage_process(tmp_path / name, "models.suites.verifiable:verifiable", CONFIG, inputs) for name in ("calm", "killed"))
    calm.run()
    killed.kill("chunk:2")
    killed.run()
    assert killed.digests() == calm.digests() and killed.history() == calm.history()


def test_prompts_of_an_own_source(base: Path, run: Run, journal: Callable[..., Any]):
    source = SourceConfig(name="chain_sum", task={"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2})
    config = VerifiableConfig(name="sums", ask="source", source=source, prompts=6, samples=1, pass_at=[], sampling=SHORT, resamples=100)
    verifiable(config, policy=base, seed=0, run=run)
    suite = read_suite(run.out)
    assert (suite.suite, suite.kind, len(suite.items)) == ("sums", "verifiable", 6) and "generated anew" in suite.notes[0]
    assert {m.name.split("=")[0] for m in suite.measures} >= {"accuracy", "accuracy/task", "accuracy/difficulty"}
    accuracy = next(measure for measure in suite.measures if measure.name == "accuracy")
    assert isinstance(accuracy, Measure) and (accuracy.mean, accuracy.low) == (0, 0) and accuracy.high > 0.3
    (entry,) = journal(run)
    assert entry[1]["suite/accuracy_high"] == accuracy.high


def test_what_cannot_be_asked_says_why(base: Path, run: Run, tmp_path: Path):
    with pytest.raises(ValueError, match="the suite verifiable asks the held-out prompts, and it is given no data"):
        verifiable(CONFIG, policy=base, seed=0, run=run)
    write_table(tmp_path / "test_prompts.parquet", [Prompt("p9", "toy", (Message("user", "a"),))])
    with pytest.raises(ValueError, match="held-out prompt p9 names none"):
        verifiable(CONFIG, policy=base, data=tmp_path, seed=0, run=run)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"pass_at": [5]}, r"pass_at=\[5\] must be different numbers from 1 to samples, which is 4"),
        ({"pass_at": [2, 2]}, "must be different numbers"),
        ({"sampling": SamplingConfig(temperature=0)}, "temperature 0 is greedy, 4 samples of a prompt would be equal"),
        ({"ask": "source", "source": SourceConfig(role="test")}, r"source\.role says how curation uses a source"),
        ({"source": SourceConfig(name="gcd")}, "source is given and ask is held_out"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], fault: str):
    with pytest.raises(ValueError, match=fault):
        VerifiableConfig(**settings)
