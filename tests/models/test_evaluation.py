"""Answers to held-out prompts: the same prompts and noise for every policy, KL from the policy's own log-probabilities."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.packing import Group, pack
from data.records import Prompt
from data.tables import read_table
from data.templates import load_tokenizer, render_prompt
from models.configs.evaluation import EvaluateConfig
from models.configs.sampling import SamplingConfig
from models.evaluation import evaluate, summarise, task_of
from models.generation import generate
from models.heads import load_scalar
from models.loading import load_policy
from models.logprobs import token_logps
from models.rendering import eos_ids
from models.rewards import score_groups
from models.run import Run, Stopped
from models.seeds import derive_seed

CONFIG = EvaluateConfig(samples_per_prompt=2, sampling=SamplingConfig(max_tokens=5), chunk_prompts=2, micro_batch_tokens=64)
Read = Callable[[Path], Any]


@pytest.fixture
def evaluated(new_run: Callable[..., Run], tables: Path, read_json: Read) -> Callable[..., dict[str, Any]]:
    def evaluate_one(name: str, policy: Path, reference: Path, config: EvaluateConfig = CONFIG, **more: Any) -> dict[str, Any]:
        run = new_run(name)
        evaluate(config, policy=policy, reference=reference, data=tables, seed=3, run=run, **more)
        return read_json(run.out / "evaluation.json")

    return evaluate_one


def test_a_policy_against_itself_has_no_kl(evaluated: Callable[..., dict[str, Any]], base: Path, tables: Path):
    found = evaluated("self", base, base)
    assert found["summary"]["eval/kl_nats"] == 0.0
    prompts = read_table(tables / "test_prompts.parquet", Prompt)
    assert [row["id"] for row in found["rows"]] == [prompt.id for prompt in prompts]
    assert {(len(row["sampled"]), "greedy" in row) for row in found["rows"]} == {(2, True)}


def test_kl_and_reward_are_those_of_the_sampled_tokens(evaluated: Callable, base: Path, other: Path, reward_folder: Path, tables: Path):
    """The first chunk sampled again here, and measured one completion at a time."""
    rows = evaluated("other", other, base, reward=reward_folder)["rows"][:2]
    tokenizer, policy, reference = load_tokenizer(other), load_policy(other), load_policy(base)
    prompts = [render_prompt(tokenizer, p.messages) for p in read_table(tables / "test_prompts.parquet", Prompt)[:2]]
    seed = derive_seed(3, "evaluate", 0)
    sampled = generate(policy, prompts, CONFIG.sampling, samples=2, eos_ids=eos_ids(other, tokenizer), seed=seed)
    for prompt, completions, row in zip(prompts, sampled, rows, strict=True):
        for completion, answer in zip(completions, row["sampled"], strict=True):
            group = Group(prompt, [completion.tokens])
            own, ref = (float(token_logps(model, pack([group]))[0].sum()) for model in (policy, reference))
            assert answer["kl_nats"] == pytest.approx(own - ref, abs=1e-4) and abs(own - ref) > 1e-2
            assert answer["reward"] == pytest.approx(score_groups(load_scalar(reward_folder), [group], 99)[0][0], abs=1e-4)
            assert answer["text"] == tokenizer.decode(completion.tokens, skip_special_tokens=True)
            assert answer["n_tokens"] == len(completion.tokens) and "tokens" not in answer


def test_fewer_prompts_no_greedy_no_reward(evaluated: Callable[..., Any], base: Path):
    config = CONFIG.model_copy(update={"prompts": 3, "greedy": False})
    found = evaluated("few", base, base, config)
    assert len(found["rows"]) == 3 and "greedy" not in found["rows"][0]
    assert "eval/reward" not in found["summary"] and "eval/accuracy_greedy" not in found["summary"]


def test_chunks_change_no_greedy_answer(evaluated: Callable[..., Any], base: Path):
    whole = evaluated("whole", base, base, CONFIG.model_copy(update={"chunk_prompts": 99}))
    assert [row["greedy"]["text"] for row in whole["rows"]] == [row["greedy"]["text"] for row in evaluated("cut", base, base)["rows"]]


def test_the_reward_model_as_the_judge(evaluated: Callable[..., Any], base: Path, reward_folder: Path, run: Run, tables: Path):
    config = CONFIG.model_copy(update={"judge": "reward_model"})
    found = evaluated("judged", base, base, config, reward=reward_folder)
    answers = [answer for row in found["rows"] for answer in (*row["sampled"], row["greedy"])]
    assert all(answer["score"] == answer["reward"] and "correct" not in answer for answer in answers)
    assert "eval/accuracy" not in found["summary"] and "eval/score" in found["summary"]
    with pytest.raises(ValueError, match="judge is reward_model, but"):
        evaluate(config, policy=base, reference=base, data=tables, seed=0, run=run)


def test_sigterm_stops_in_the_middle_of_a_chunk(run: Run, base: Path, tables: Path):
    run._asked_to_stop = True
    with pytest.raises(Stopped):
        evaluate(CONFIG, policy=base, reference=base, data=tables, seed=3, run=run)
    assert not list(run.checkpoints.glob("answers-*")) and not list(run.out.iterdir())


def test_a_summary_by_hand():
    def answer(correct: bool, text: str, **more: Any) -> dict[str, Any]:
        plain = {"score": 0.5 * correct, "kl_nats": 1.0 + correct, "n_tokens": len(text), "finished": correct, "failed": not correct}
        return {"text": text, "correct": correct, **plain, **more}

    rows = [
        {"sampled": [answer(True, "a", reward=1.0), answer(False, "bbb", reward=4.0)], "greedy": answer(True, "x")},
        {"sampled": [answer(False, "a", reward=0.0), answer(False, "ccccc", reward=-1.0)], "greedy": answer(False, "y")},
    ]
    assert summarise(rows) == {
        "eval/accuracy": 0.25,
        "eval/score": 0.125,
        "eval/kl_nats": 1.25,
        "eval/completion_tokens": 2.5,
        "eval/finished": 0.25,
        "eval/distinct": 0.75,
        "eval/verifier_failures": 3.0,
        "eval/accuracy_greedy": 0.5,
        "eval/reward": 1.0,
    }


def test_the_kl_estimate_is_right_on_average(bandit: Path, tmp_path: Path, new_run: Callable[..., Run], read_json: Read):
    """Against the KL summed over all five first tokens: 2,000 samples, four standard errors."""
    from data.records import Message
    from data.tables import write_table

    sharper = load_policy(bandit)
    sharper.get_output_embeddings().weight.mul_(12)
    sharper.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((bandit / name).read_bytes())
    write_table(tmp_path / "test_prompts.parquet", [Prompt("p", "bandit", (Message("user", "a"),), "b", "exact")])
    config = EvaluateConfig(samples_per_prompt=2000, sampling=SamplingConfig(max_tokens=1, max_rows=2000), greedy=False)
    run = new_run()
    evaluate(config, policy=tmp_path, reference=bandit, data=tmp_path, seed=0, run=run)
    rows = read_json(run.out / "evaluation.json")["rows"]
    estimates = torch.tensor([answer["kl_nats"] for answer in rows[0]["sampled"]])
    every = pack([Group([1], [[token] for token in range(5)])])
    own, ref = (token_logps(model, every)[0] for model in (sharper, load_policy(bandit)))
    exact = float((own.exp() * (own - ref)).sum())
    assert exact > 0.02
    assert float(estimates.mean()) == pytest.approx(exact, abs=4 * float(estimates.std()) / 2000**0.5)


def test_log_probabilities_and_a_held_out_reward_model(evaluated: Callable, base: Path, other: Path, reward_folder: Path):
    """The held-out reward model here is the same as the other, so that both say the same."""
    rows = evaluated("both", other, base, reward=reward_folder, held_out_reward=reward_folder)["rows"]
    answers = [answer for row in rows for answer in row["sampled"]]
    assert all(answer["held_out_reward"] == answer["reward"] for answer in answers)
    again = evaluated("itself", base, base)["rows"]
    assert all(answer["logp_nats"] < 0 and "held_out_reward" not in answer for row in again for answer in row["sampled"])


def test_task_and_difficulty_of_a_prompt():
    entry = {"num_terms": 3, "num_digits": 1, "expression": "1 + 2", "difficulty": {"num_terms": [2, 6], "num_digits": [1, 4], "gone": 1}}
    prompt = Prompt("a", "s", (), metadata={"task": "chain_sum", "metadata": entry})
    assert task_of(prompt) == {"task": "chain_sum", "difficulty": "num_digits=1, num_terms=3"}
    assert task_of(Prompt("a", "s", (), metadata={"difficulty": "hard"})) == {"difficulty": "hard"}
    assert task_of(Prompt("a", "s", ())) == {}
