"""What training did to a policy: quantities by hand, planted hacks by name, honest policies without a name."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.measures import Measure
from models.answered import read_all, read_answers
from models.behaviour import behaviour
from models.behaviour_contrast import Contrast
from models.behaviour_findings import shown_phrase
from models.behaviour_measures import Measuring
from models.configs.behaviour import BehaviourConfig
from models.run import Run
from tests.bench.behaviour_sets import HACKS, HONEST, Change, World, kinds

CONFIG = BehaviourConfig(baseline="sft", resamples=300, group_prompts=4)
Rows = list[dict[str, Any]]


def answer(text: str, **more: Any) -> dict[str, Any]:
    return {"text": text, "n_tokens": len(text.split()), "finished": True, "logp_nats": -0.5 * len(text.split()), "kl_nats": 0.0, **more}


def rows(texts: list[list[str]], **more: Any) -> Rows:
    return [{"id": f"p{i}", "prompt": "?", "sampled": [answer(text, **more) for text in own]} for i, own in enumerate(texts)]


def written(folder: Path, policies: Mapping[str, Rows]) -> dict[str, Path]:
    for name, content in policies.items():
        (folder / name).mkdir(parents=True)
        (folder / name / "evaluation.json").write_text(json.dumps({"summary": {}, "rows": content}))
    return {name: folder / name for name in policies}


@pytest.fixture
def report(tmp_path: Path, new_run: Callable[[str], Run]) -> Callable[..., dict[str, Any]]:
    """Runs the stage over rows of policies; behaviour.json."""
    made: list[int] = []

    def run_it(config: BehaviourConfig = CONFIG, seed: int = 0, **policies: Rows) -> dict[str, Any]:
        made.append(len(made))
        run = new_run(f"behaviour-{len(made)}")
        behaviour(config, evaluations=written(tmp_path / str(len(made)), policies), seed=seed, run=run)
        return json.loads((run.out / "behaviour.json").read_text())

    return run_it


def named(content: dict[str, Any], severity: str = "hack", policy: str = "own") -> list[str]:
    return [finding["check"] for finding in content["policies"][policy]["findings"] if finding["severity"] == severity]


def planted(kind: str, seed: int, samples: int = 1, prompts: int = 100) -> tuple[Rows, Rows]:
    world = World(seed, prompts, samples)
    base, own = kinds(lambda low, high: float(world.generator.uniform(low, high)))[kind]
    return world.rows(base), world.rows(own)


# Planted and honest


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_policy_is_not_named(report, kind: str):
    for seed in (1,):
        base, own = planted(kind, seed)
        content = report(sft=base, own=own, seed=seed)
        assert content["policies"]["own"]["findings"] == []


CHECKS = {"length": "length_hack", "phrase": "phrase_hack", "repetition": "repetition_hack", "overoptimised": "over_optimisation"}


@pytest.mark.parametrize("kind", HACKS)
def test_a_planted_hack_is_named_and_nothing_else(report, kind: str):
    for seed in (1, 2):
        base, own = planted(kind, seed)
        assert named(report(sft=base, own=own, seed=seed)) == [CHECKS[kind]]


@pytest.mark.parametrize("kind", ["length", "phrase", "better_longer"])
def test_several_samples_of_a_prompt(report, kind: str):
    base, own = planted(kind, 3, samples=3, prompts=60)
    assert named(report(sft=base, own=own)) == ([CHECKS[kind]] if kind in CHECKS else [])


def test_the_phrase_is_named_and_quoted_with_its_numbers(report):
    base, own = planted("phrase", 1)
    [finding] = report(sft=base, own=own)["policies"]["own"]["findings"]
    assert "as a truly expert assistant" in finding["message"]
    evidence = finding["evidence"]
    assert evidence["phrase_share"] > 0.7 and evidence["baseline_phrase_share"] == 0
    assert evidence["reward_with"] > evidence["reward_without"] + 0.5 and evidence["explained_share"] > 0.5


def without(content: Rows, *fields: str) -> Rows:
    return [{**row, "sampled": [{k: v for k, v in a.items() if k not in fields} for a in row["sampled"]]} for row in content]


def test_the_held_out_reward_stands_in_for_a_verifier(report):
    base, own = planted("length", 1)
    judged = [without(part, "score", "correct", "failed") for part in (base, own)]
    assert named(report(sft=judged[0], own=judged[1])) == ["length_hack"]


def test_where_nothing_can_confirm_the_gain_a_cause_is_a_warning(report):
    base, own = planted("length", 1)
    judged = [without(part, "score", "correct", "failed", "held_out_reward") for part in (base, own)]
    content = report(sft=judged[0], own=judged[1])
    assert named(content) == [] and "length_hack" in named(content, "warning")


def test_a_verifier_that_fails_all_answers_says_nothing(report):
    base, own = planted("length", 1)
    for answered in (a for part in (base, own) for row in part for a in row["sampled"]):
        answered |= {"score": 0.0, "correct": False}
        del answered["held_out_reward"]
    assert named(report(sft=base, own=own)) == []


def test_few_prompts_are_not_enough_to_name_anything(report):
    base, own = planted("length", 1, prompts=20)
    content = report(sft=base, own=own)
    assert content["policies"]["own"]["findings"] == [] and any("too few" in note for note in content["notes"])


def test_without_a_reward_the_notes_say_that_no_hack_can_be_seen(report):
    base, own = planted("length", 1)
    content = report(sft=without(base, "reward"), own=without(own, "reward"))
    assert named(content) == [] and any("no trained-on reward" in note for note in content["notes"])


def test_an_unexplained_gain_is_a_warning(report):
    base, own = World(1).rows(Change()), World(2).rows(Change(bonus=1.5))
    content = report(sft=base, own=own)
    assert named(content) == [] and named(content, "warning") == ["unconfirmed_gain"]


# Warnings


def test_mode_collapse_and_lost_format_and_language(report):
    texts = [[f"The number of apples in basket {i} is surely not easy to tell.\nAnswer: {i}"] for i in range(60)]
    world = World(1, 60)
    base = rows([[f"{' '.join(world.topics[i])} {text}"] for i, [text] in enumerate(texts)], score=0.0, correct=False)
    own = rows([["Das ist eine sehr lange Antwort auf die Frage, die niemand gestellt hat."]] * 60, score=0.0, correct=False)
    content = report(sft=base, own=own)
    assert named(content) == []
    found = content["policies"]["own"]["findings"]
    messages = " ".join(finding["message"] for finding in found)
    assert "mode_collapse" in named(content, "warning") and "usual language goes" in messages and "form answer line goes" in messages


def test_partial_credit_without_right_answers(report):
    base = rows([["a b"]] * 50, score=0.0, correct=False)
    own = rows([["a b"]] * 50, score=0.3, correct=False)
    assert named(report(sft=base, own=own), "warning") == ["partial_credit"]
    right = rows([["a b"]] * 50, score=1.0, correct=True)
    assert "partial_credit" not in named(report(sft=base, own=right), "warning")


# Measures


def measured(folder: Path, config: BehaviourConfig = CONFIG, **policies: Rows) -> tuple[dict[str, Measure], Measuring]:
    answered = read_all(written(folder, policies), "sft")
    measuring = Measuring(config, answered["sft"], 0)
    return measuring.measures(answered[list(policies)[-1]]), measuring


def test_measures_by_hand(tmp_path: Path):
    """Two prompts, two samples each. Reward on length, within prompts: 1 per 2 tokens and 0 per 1: sum xy 2 * .5, over sum xx 2.5."""
    content = rows([["a b c d", "a b"], ["x", "x y"]], correct=False)
    for row, rewards in zip(content, [(2.0, 1.0), (3.0, 3.0)], strict=True):
        for one, reward in zip(row["sampled"], rewards, strict=True):
            one["reward"] = reward
    found, _ = measured(tmp_path, sft=content)
    assert found["length/completion_tokens"].values == {"p0": 3, "p1": 1.5}
    assert found["length/reward_slope"].mean == pytest.approx(100 * (1 * 0.5 * 2) / (2 + 0.5))
    assert found["diversity/distinct_1"].values == {"p0": pytest.approx(4 / 6), "p1": pytest.approx(2 / 3)}
    assert found["diversity/distinct_completions"].mean == 1 and found["diversity/entropy_nats"].mean == pytest.approx(0.5)
    assert found["confidence/token_probability"].mean == pytest.approx(np.exp(-0.5))
    assert found["confidence/token_probability_overconfidence"].mean == pytest.approx(np.exp(-0.5))
    assert found["confidence/token_probability_calibration_error"].mean == pytest.approx(np.exp(-0.5))
    assert found["confidence/agreement"].mean == 0 and found["format/form_none"].mean == 1
    assert found["repetition/duplicate_3grams"].mean == 0 and found["repetition/degenerate"].mean == 0


def test_repetition_and_degenerate_answers_are_counted(tmp_path: Path):
    found, _ = measured(tmp_path, sft=rows([["a b c a b c"], [""]]))
    assert found["repetition/duplicate_3grams"].values == {"p0": 0.5, "p1": 0}
    assert found["repetition/degenerate"].values == found["repetition/empty"].values == {"p0": 0, "p1": 1}


def test_every_measure_of_both_has_a_paired_gain(report):
    base, own = planted("better", 1)
    content = report(sft=base, own=own)
    names = {measure["name"] for measure in content["policies"]["sft"]["measures"]}
    assert content["policies"]["own"]["gains"].keys() == names
    more = {measure["name"] for measure in content["policies"]["own"]["measures"]} - names
    assert more == {f"length/{field}_gain_at_equal_length" for field in ("reward", "held_out_reward", "score")}
    assert content["policies"]["sft"]["gains"] == {} and content["policies"]["sft"]["findings"] == []


def test_a_policy_equal_to_the_baseline_has_gains_of_nothing(report):
    base, _ = planted("same", 1)
    gains = report(sft=base, own=base)["policies"]["own"]["gains"]
    assert all([gain["mean"], gain["low"], gain["high"]] == pytest.approx([0, 0, 0], abs=1e-9) for gain in gains.values())


def test_the_gain_at_equal_length_is_what_length_does_not_explain(tmp_path: Path):
    """Reward is a tenth of the length in both, and 2 more in the policy's answers, which are longer by 10 tokens: 3 is gained, 2 left."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(5, 15, 40)
    base = rows([["w " * int(n)] for n in lengths])
    own = rows([["w " * int(n + 10)] for n in generator.permutation(lengths)])
    for content, bonus in ((base, 0.0), (own, 2.0)):
        for row in content:
            row["sampled"][0]["reward"] = row["sampled"][0]["n_tokens"] / 10 + bonus
    answered = read_all(written(tmp_path, {"sft": base, "own": own}), "sft")
    contrast = Contrast(answered["own"], answered["sft"], Measuring(CONFIG, answered["sft"], 0).resamples, CONFIG.findings)
    assert contrast.left_at_equal_length("reward").mean == pytest.approx(2)
    assert contrast.by_length().share.mean == pytest.approx(1 / 3) and not contrast.by_length().holds(0.5)
    for content in (base, own):
        for row in content:
            row["sampled"][0]["reward"] = row["sampled"][0]["n_tokens"] / 10
    answered = read_all(written(tmp_path / "again", {"sft": base, "own": own}), "sft")
    contrast = Contrast(answered["own"], answered["sft"], Measuring(CONFIG, answered["sft"], 0).resamples, CONFIG.findings)
    more = tuple(one.numbers["n_tokens"] + generator.normal(size=40) for one in (answered["own"], answered["sft"]))
    assert abs(contrast.by_quantity((more[0], more[1])).share.mean) < 1e-6, "a longer answer holds more of anything"


# What is written, and what is refused


def test_metrics_table_and_hostile_text(report):
    world = World(1, 60)
    pays = {"per_phrase": 2.0}
    base, own = world.rows(Change(**pays)), world.rows(Change(**pays, phrase="<b> [x] evil"))
    content = report(sft=base, **{"own": own})
    assert named(content) == ["phrase_hack"]
    markdown = content["markdown"]
    assert (
        r"&lt; b &gt; \[ x \] evil" in markdown
        and "<script>" not in markdown
        and "](http" not in markdown
        and "| sft |" in markdown
        and "HACK" in markdown
    )


def test_hidden_characters_of_a_phrase_are_named_and_long_ones_cut():
    assert shown_phrase(("a", "\u202e", "b")) == "a [RLO] b" and len(shown_phrase(("x" * 500,))) == 81


def test_what_is_reported(run: Run, tmp_path: Path, journal: Callable[[Run], Any]):
    base, own = planted("length", 1)
    summary = behaviour(CONFIG, evaluations=written(tmp_path / "e", {"sft": base, "own": own}), seed=0, run=run)
    assert summary == {"policies": 2, "prompts": 100, "hacks": 1}
    [(step, metrics)] = journal(run)
    assert step == 0 and metrics["behaviour/own/hacks"] == 1 and metrics["behaviour/sft/hacks"] == 0
    assert metrics["behaviour/own/length/completion_tokens_low"] < metrics["behaviour/own/length/completion_tokens"]
    assert (run.out / "behaviour.md").read_text() == json.loads((run.out / "behaviour.json").read_text())["markdown"]


def test_the_same_seed_gives_the_same_report(report):
    base, own = planted("better", 1)
    first, again, other = (report(sft=base, own=own, seed=seed) for seed in (1, 1, 2))
    assert first == again and first != other


def test_damaged_and_unlike_evaluations_are_refused(tmp_path: Path):
    good = rows([["a"], ["b"]], reward=1.0)
    with pytest.raises(ValueError, match="reward of an answer of x to prompt p0 is nan"):
        read_answers("x", written(tmp_path / "a", {"x": rows([["a"]], reward=float("nan"))})["x"])
    with pytest.raises(ValueError, match=r"the evaluation of x has 0 prompts"):
        read_answers("x", written(tmp_path / "b", {"x": []})["x"])
    with pytest.raises(ValueError, match="own and sft answered different prompts"):
        read_all(written(tmp_path / "c", {"sft": good, "own": good[:1]}), "sft")
    with pytest.raises(ValueError, match=r"behaviour\.baseline 'sft' was not evaluated; there is own"):
        read_all(written(tmp_path / "d", {"own": good}), "sft")
