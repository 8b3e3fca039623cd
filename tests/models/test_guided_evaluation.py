"""Ways of decoding on held-out prompts: the best of several, the same file whatever the time, the table by hand."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.packing import Group
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models import guided_evaluation
from models.configs.guidance import DecodingComparisonConfig, GuidanceConfig, GuidedEvaluationConfig
from models.configs.sampling import SamplingConfig
from models.decoding_comparison import compare, mean_and_error
from models.generation import generate
from models.heads import load_scalar, new_scalar, new_token_reward, save_scalar
from models.loading import load_policy
from models.rendering import eos_ids, text_of
from models.rewards import score_groups
from models.run import Run
from models.seeds import derive_seed

SHORT = SamplingConfig(max_tokens=5)
Evaluate = Callable[..., tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture
def evaluated(new_run: Callable[..., Run], base: Path, other: Path, tables: Path, reward_folder: Path, read_json: Callable) -> Evaluate:
    """Evaluates ``base`` against ``other``; what was returned and what was written."""

    def run_one(name: str, scorer: Path | None = None, **guidance: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config = GuidedEvaluationConfig(guidance=GuidanceConfig(**guidance), samples_per_prompt=2, sampling=SHORT, chunk_prompts=2)
        run = new_run(name)
        folders = {"policy": base, "reference": other, "data": tables, "reward": reward_folder, "scorer": scorer}
        meta = guided_evaluation.evaluate(config, **folders, seed=3, run=run)
        return meta, read_json(run.out / "evaluation.json")

    return run_one


def test_best_of_n_takes_the_best_of_its_own_samples(evaluated: Evaluate, base: Path, reward_folder: Path, tables: Path):
    _, found = evaluated("best", mode="best_of_n", samples=3)
    tokenizer, policy, reward = load_tokenizer(base), load_policy(base), load_scalar(reward_folder)
    ids = [render_prompt(tokenizer, p.messages) for p in read_table(tables / "test_prompts.parquet", Prompt)[:2]]
    own = derive_seed(3, "guided", 0)
    rows = generate(policy, ids, SHORT, samples=6, eos_ids=eos_ids(base, tokenizer), seed=own)
    for prompt, row, answered in zip(ids, rows, found["rows"], strict=False):
        (scores,) = score_groups(reward, [Group(prompt, [c.tokens for c in row])], 999)
        for part, answer in zip((slice(0, 3), slice(3, 6)), answered["sampled"], strict=True):
            best = max(scores[part])
            assert answer["reward"] == pytest.approx(best, abs=1e-4)
            assert answer["text"] == text_of(tokenizer, row[scores.index(best)].tokens)
    assert "kl_nats" not in found["rows"][0]["sampled"][0]


def test_guidance_raises_the_reward_it_follows(evaluated: Evaluate):
    plain, _ = evaluated("plain")
    rewards = {
        "args": evaluated("args", mode="args", weight=20.0, top_k=0)[0]["eval/reward"],
        "cards": evaluated("cards", mode="cards", goal=2.0, goal_width=0.05)[0]["eval/reward"],
        "best": evaluated("best", mode="best_of_n", samples=8)[0]["eval/reward"],
    }
    assert all(reward > plain["eval/reward"] + 0.2 for reward in rewards.values()), (plain, rewards)


def test_the_kl_is_that_of_what_was_sampled_from(evaluated: Evaluate):
    """No weight, all tokens: the policy's own; the reference is another one here."""
    plain, first = evaluated("plain")
    same, second = evaluated("args", mode="args", weight=0.0, top_k=0)
    texts = [[[c["text"] for c in row["sampled"]] for row in found["rows"]] for found in (first, second)]
    assert texts[0] == texts[1] and same["eval/kl_nats"] == pytest.approx(plain["eval/kl_nats"], abs=1e-4)
    assert plain["eval/kl_nats"] > 0.1


def test_segments_are_counted(evaluated: Evaluate):
    meta, _ = evaluated("cards", mode="cards", goal=9.0, max_tries=2)
    assert meta["guidance/drawn_segments"] >= meta["guidance/accepted_segments"] and meta["guidance/forced_segments"] > 0


def test_next_tokens_scored_by_a_model_of_their_own(evaluated: Evaluate, base: Path, tmp_path: Path):
    save_scalar(new_token_reward(base), base, tmp_path)
    assert evaluated("farma", scorer=tmp_path, mode="farma")[0]["answers"] == 10


def test_the_file_depends_on_the_settings_alone(evaluated: Evaluate):
    (one, first), (two, second) = evaluated("one", mode="args"), evaluated("two", mode="args")
    assert first == second and one["seconds"] > 0 and "seconds" not in json.dumps(first)
    assert {k: v for k, v in one.items() if k != "seconds"} == {k: v for k, v in two.items() if k != "seconds"}


def test_the_seconds_of_a_stopped_attempt_count(evaluated: Evaluate, new_run: Callable[..., Run]):
    """A chunk that was finished before is not decoded again, and its time is kept."""
    run = new_run("resumed")
    kept = run.checkpoints / "guided-00000.json"
    evaluated("resumed")
    chunks = json.loads(kept.read_text())
    chunks[0]["seconds"] = 1000.0
    kept.write_text(json.dumps(chunks))
    assert evaluated("resumed")[0]["seconds"] > 1000


def test_a_choice_among_equal_samples_is_refused():
    with pytest.raises(ValueError, match=r"cards chooses among samples, and at sampling\.temperature 0 all are equal"):
        GuidedEvaluationConfig(guidance=GuidanceConfig(mode="cards"), sampling=SamplingConfig(temperature=0))


@pytest.mark.parametrize("mode", ["args", "farma", "cards"])
def test_half_precision_policies_and_rewards(half: Path, tables: Path, tmp_path: Path, new_run: Callable[..., Run], mode: Any):
    """A reward model made of a bfloat16 policy: its head is float32."""
    makers = {"scalar": new_scalar(half, 0), "token": new_token_reward(half)}
    for name, model in makers.items():
        save_scalar(model, half, tmp_path / name)
    config = GuidedEvaluationConfig(guidance=GuidanceConfig(mode=mode), sampling=SHORT)
    folders = {"policy": half, "reference": half, "data": tables, "reward": tmp_path / "scalar", "scorer": tmp_path / "token"}
    if mode != "farma":
        folders.pop("scorer")
    meta = guided_evaluation.evaluate(config, **folders, seed=0, run=new_run(mode))
    assert math.isfinite(meta["eval/reward"])


# The table


def test_mean_and_standard_error_by_hand():
    assert mean_and_error([0.0, 2.0]) == {"mean": 1.0, "se": 1.0}
    assert mean_and_error([3.0]) == {"mean": 3.0, "se": 0.0}


def rows_of(rewards: list[float], **more: Any) -> list[dict[str, Any]]:
    return [{"id": str(i), "sampled": [{"reward": r, "n_tokens": 2, "text": f"t{r}", **more}]} for i, r in enumerate(rewards)]


@pytest.fixture
def table(tmp_path: Path, run: Run, read_json: Callable) -> Callable[..., dict[str, Any]]:
    def make(**rows: list[dict[str, Any]]) -> dict[str, Any]:
        for name, own in rows.items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "evaluation.json").write_text(json.dumps({"rows": own}))
        seconds = dict.fromkeys(rows, 90.0)
        compare(DecodingComparisonConfig(note="by hand"), evaluations={n: tmp_path / n for n in rows}, seconds=seconds, run=run)
        return read_json(run.out / "comparison.json")

    return make


def test_the_table_has_reward_error_and_minutes(table: Callable[..., dict[str, Any]]):
    found = table(reference=rows_of([0.0, 2.0], kl_nats=0.5), cards=rows_of([1.0, 4.0]))
    assert [row["minutes"] for row in found["rows"]] == [1.5, 1.5]
    assert found["rows"][1]["reward"] == {"mean": 2.5, "se": pytest.approx(math.sqrt(4.5 / 2))}
    header, _, first, second, _, note = found["markdown"].splitlines()
    assert header == "| policy | reward | minutes | KL to baseline, nats | length, tokens | distinct completions |"
    assert first == "| reference | 1.00 ± 1.00 | 1.500 | 0.500 | 2.000 | 2 |" and "| 2.50 ± 1.50 | 1.500 | - |" in second
    assert note.startswith("2 held-out prompts") and note.endswith("by hand.")


def test_other_prompts_are_refused(table: Callable[..., dict[str, Any]]):
    with pytest.raises(ValueError, match="args and reference answered different prompts"):
        table(reference=rows_of([0.0, 2.0]), args=rows_of([1.0]))
