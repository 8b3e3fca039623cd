"""The published data sets, whole. Skipped where the folder that holds them is absent."""

from collections import Counter

import pytest

from data.configs import CurateConfig, SourceConfig
from data.curation import curate
from data.forms import detect_form, mapped, parse
from data.lint import lint_pairs
from data.reading import examples_of
from data.records import Demonstration, Message, Preference, Prompt, normalised_text
from data.sources import BadRow, read_rows
from data.tables import read_table
from data.templates import end_of_turn_id, load_tokenizer, render_demonstration, render_prompt
from data.verifiers import verify

# file, mapping, form, rows that are read, examples, rows set aside
SETS = [
    ("gsm8k/train.jsonl", {"prompt": "question", "completion": "answer"}, "prompt_completion", 7473, 7473, {}),
    ("gsm8k/test.jsonl", {"prompt": "question", "completion": "answer"}, "prompt_completion", 1319, 1319, {}),
    ("hh-rlhf/harmless-base-test.jsonl.gz", {}, "hh", 2312, 2308, {"empty": 4}),
    ("llms-from-scratch/instruction-data.json", {}, "alpaca", 1100, 1100, {}),
    ("llms-from-scratch/instruction-data-with-preference.json", {}, "preference", 1100, 1094, {"chosen_equals_rejected": 6}),
    ("demo-sft-dpo-kto/alpaca_en_demo.json", {}, "alpaca", 999, 999, {}),
    ("demo-sft-dpo-kto/dpo_en_demo.json", {}, "preference", 300, 300, {}),
    ("demo-sft-dpo-kto/kto_en_demo.json", {}, "label", 300, 300, {}),
    ("oasst-sample/en_100_tree.jsonl", {}, "ranked", 100, 212, {}),
    ("truthfulqa/finetune_truth.jsonl", {}, "prompt_completion", 22434, 22434, {}),
    ("truthfulqa/TruthfulQA.csv", {"prompt": "Question", "completion": "Best Answer"}, "prompt_completion", 817, 817, {}),
]


@pytest.mark.parametrize(("name", "columns", "form", "n_rows", "n_examples", "set_aside"), SETS, ids=[each[0] for each in SETS])
def test_a_published_set_is_read_whole(shared_data, name, columns, form, n_rows, n_examples, set_aside):
    rows = list(read_rows(SourceConfig(kind="file", name=str(shared_data / name), columns=columns)))
    first = mapped(rows[0].values, columns)
    assert detect_form(first, first) == form
    examples, reasons = [], Counter()
    for row in rows:
        try:
            examples += parse(mapped(row.values, columns), form)
        except BadRow as fault:
            reasons[fault.reason] += 1
    assert (len(rows), len(examples), dict(reasons)) == (n_rows, n_examples, set_aside)


def test_gsm8k_is_curated_and_its_own_solutions_are_right(shared_data, chat_folder, run):
    fields = {
        "kind": "file",
        "columns": {"prompt": "question", "completion": "answer"},
        "verifier": "number",
        "remove_calculator_marks": True,
    }
    train = SourceConfig(name=str(shared_data / "gsm8k/train.jsonl"), role="train", rows=600, **fields)
    test = SourceConfig(name=str(shared_data / "gsm8k/test.jsonl"), role="test", rows=100, **fields)
    config = CurateConfig(
        sources=[train, test], demonstrations=300, prompts=200, test_prompts=-1, max_prompt_tokens=1024, max_completion_tokens=1024
    )
    meta = curate(config, base=chat_folder, seed=1, run=run)
    assert meta["rows"] == {"demonstrations": 300, "prompts": 200, "test_prompts": 100}
    answers = {
        normalised_text(row.messages[:-1]): row.messages[-1].content
        for row in read_table(run.out / "demonstrations.parquet", Demonstration)
    }
    assert all("<<" not in text for text in answers.values())
    prompts = read_table(run.out / "prompts.parquet", Prompt)
    assert all(prompt.answer is not None and verify(prompt, f"#### {prompt.answer}").correct for prompt in prompts)
    assert not any(normalised_text(prompt.messages) in answers for prompt in prompts)


def test_hh_pairs_share_no_prompt_with_the_held_out(shared_data, chat_folder, run):
    source = SourceConfig(kind="file", name=str(shared_data / "hh-rlhf/harmless-base-test.jsonl.gz"), rows=400)
    sizes = {"demonstrations": -1, "preferences": -1, "prompts": 50, "test_prompts": 40, "test_preferences": 60}
    config = CurateConfig(sources=[source], share_rows=True, max_prompt_tokens=2048, max_completion_tokens=1024, **sizes)
    meta = curate(config, base=chat_folder, seed=1, run=run)
    assert meta["rows"]["test_preferences"] == 60 and meta["rows"]["preferences"] > 300
    pairs, held = (read_table(run.out / f"{name}.parquet", Preference) for name in ("preferences", "test_preferences"))
    assert {normalised_text(row.prompt) for row in pairs}.isdisjoint(normalised_text(row.prompt) for row in held)
    assert all(row.prompt[-1].role == "user" and row.chosen != row.rejected for row in (*pairs, *held))


def test_example_solutions_are_judged_as_their_authors_did(shared_data):
    """gsm8k's own grading of 200 model solutions: `is_correct` compares what follows 'A:'."""
    config = SourceConfig(kind="file", name=str(shared_data / "gsm8k/example_model_solutions.jsonl"), rows=200)
    agreed = total = 0
    for row in read_rows(config):
        answer = row.values["ground_truth"].split("A:")[-1].strip()
        prompt = Prompt("p", "s", (), answer=answer, verifier="number")
        for name in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            judged = row.values[name]
            total += 1
            agreed += verify(prompt, judged["solution"]).correct is judged["is_correct"]
    assert agreed / total > 0.99, f"{agreed} of {total}"


def test_a_real_base_tokenizer_keeps_control_tokens_out_of_text(shared_data):
    tokenizer = load_tokenizer(shared_data.parent / "models" / "stories260k")
    messages = (Message("user", "Once upon a time </s>"), Message("assistant", "there was <s> a cat."))
    ids, trained = render_demonstration(tokenizer, messages)
    assert [i for i in ids if i in (1, 2)] == [1, 2]
    assert ids[: len(render_prompt(tokenizer, messages[:1]))] == render_prompt(tokenizer, messages[:1])
    assert end_of_turn_id(tokenizer) == 2 and sum(trained) > 5


# file, pairs, faults, tendencies
LINTED = [
    ("hh-rlhf/harmless-base-test.jsonl.gz", 2308, {"degenerate": 4}, set()),
    ("demo-sft-dpo-kto/dpo_en_demo.json", 300, {}, {"order"}),
    ("llms-from-scratch/instruction-data-with-preference.json", 1094, {"trigger": 738}, set()),
    ("oasst-sample/en_100_tree.jsonl", 212, {}, {"length_bias"}),
]


@pytest.mark.parametrize(("name", "n_pairs", "faults", "tendencies"), LINTED, ids=[each[0] for each in LINTED])
def test_what_lint_says_of_a_published_set(shared_data, name, n_pairs, faults, tendencies):
    """HH-RLHF prefers four answers without a word; the politeness pairs of llms-from-scratch are told apart by "obviously" and its like.

    One answer in SQL says "select 1", which is no order to its judge, and so no fault.
    """
    examples = [e for _, found in examples_of(SourceConfig(kind="file", name=str(shared_data / name))) for e in found]
    pairs = [
        Preference("p", name, e.prompt, e.chosen, e.rejected)
        for e in examples
        if not isinstance(e, BadRow) and e.chosen is not None and e.rejected is not None
    ]
    lint = lint_pairs(pairs, {})
    assert lint.pairs == n_pairs and {f.check: f.count for f in lint.faults} == faults
    assert {f.check for f in lint.findings if not f.is_fault} == tendencies
