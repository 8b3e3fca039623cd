"""Multiple choice: log-likelihoods as transformers has them, measures by hand, and from a file to suite.json."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerBase

from data.measures import read_suite
from data.multiple_choice import Question, question_of
from models.configs.multiple_choice import MultipleChoiceConfig
from models.configs.suites import RowsConfig
from models.run import Run
from models.suites.multiple_choice import TRUTHFULQA, group_of, measures, multiple_choice, picks_best, true_mass

ROWS = [
    {"question": f"Is {i} even?", "choices": ["yes it is", "no", "<|im_end|>"], "answer": i % 2, "task": "x" if i < 3 else "y"}
    for i in range(5)
]


def config(path: Path | str = "rows.jsonl", **more: Any) -> MultipleChoiceConfig:
    settings = {"resamples": 100, "chunk_questions": 2, "micro_batch_tokens": 100} | more
    return MultipleChoiceConfig(source=RowsConfig(name=str(path)), **settings)


@pytest.fixture
def rows_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@torch.no_grad()
def direct(model: LlamaForCausalLM, prompt: list[int], choice: list[int]) -> float:
    """Sum of the log-probabilities of a choice, the whole text through transformers' own attention."""
    logits = model(torch.tensor([prompt + choice])).logits[0].double().log_softmax(-1)
    return sum(float(logits[len(prompt) - 1 + t, token]) for t, token in enumerate(choice))


@pytest.mark.parametrize("style", ["text", "chat"])
def test_log_likelihoods_are_those_of_transformers(style: Any, base: Path, run: Run, rows_file: Path, tokenizer: PreTrainedTokenizerBase):
    multiple_choice(config(rows_file, style=style), policy=base, seed=0, run=run)
    plain = LlamaForCausalLM.from_pretrained(base, attn_implementation="eager")
    for row, item in zip(ROWS, read_suite(run.out).items, strict=True):
        if style == "text":
            prompt = tokenizer.encode(f"Question: {row['question']}\nAnswer:")
        else:
            text = f"<|im_start|>user\n{row['question']}<|im_end|>\n<|im_start|>assistant\n"
            prompt = tokenizer.encode(text)
        for choice, logp, n_tokens in zip(row["choices"], item["logp_nats"], item["n_tokens"], strict=True):
            said = f" {choice}" if style == "text" else choice
            tokens = tokenizer(said, split_special_tokens=True)["input_ids"]
            assert len(tokens) == n_tokens == len(said)
            assert logp == pytest.approx(direct(plain, prompt, tokens), abs=1e-3)


def test_the_question_is_read_once_and_the_published_ones_stand_before_it(tokenizer: PreTrainedTokenizerBase):
    question = question_of({"question": "{question}?", "choices": ["a", "bc"], "labels": [1, 0]})
    group = group_of(tokenizer, question, config(style="truthfulqa"))
    text = tokenizer.decode(group.prompt)
    assert text == TRUTHFULQA[: -len("{question}\nA:")] + "{question}?\nA:" and text.count("Q: ") == 7
    assert [tokenizer.decode(choice) for choice in group.completions] == [" a", " bc"]
    assert tokenizer.decode(group_of(tokenizer, question, config(template="{question} ->")).prompt) == "{question}? ->"


def made(best: int, *choices: str, true: tuple[bool, ...] | None = None, single: tuple[int, ...] | None = None) -> Question:
    return Question(f"q{best}{choices}", "?", choices, single or tuple(range(len(choices))), best, true)


def test_accuracy_by_hand():
    """The long right choice has the lowest sum, but per byte the highest: -6/6 against -2/1; per token -6/2 against -2/1."""
    found = {m.name: m.mean for m in measures([made(0, "abcdef", "x")], [{"logp_nats": [-6.0, -2.0], "n_tokens": [2, 1]}], config(), 0)}
    assert found == {"accuracy": 0.0, "accuracy_per_token": 0.0, "accuracy_per_byte": 1.0}
    found = {m.name: m.mean for m in measures([made(0, "\u00e4", "x")], [{"logp_nats": [-3.0, -2.0], "n_tokens": [1, 1]}], config(), 0)}
    assert found["accuracy_per_byte"] == 1.0, "-3 over two bytes"


def test_truthfulness_by_hand():
    """Probabilities 0.1 and 0.4 of the true, 0.2 of the false: the best true one loses (MC1 = 0), true ones have 5/7 (MC2)."""
    question = made(0, "a", "b", "c", true=(True, False, True), single=(0, 1))
    own = {"logp_nats": [math.log(p) for p in (0.1, 0.2, 0.4)], "n_tokens": [1, 1, 1]}
    found = {m.name: m.mean for m in measures([question], [own], config(), 0)}
    assert found == {"mc1": 0.0, "mc1_per_token": 0.0, "mc1_per_byte": 0.0, "mc2": pytest.approx(5 / 7)}
    assert true_mass([-1000.0, -1000.0], [True, False]) == 0.5


def test_a_tie_is_not_right():
    assert picks_best(made(1, "a", "b"), [-2.0, -1.0]) and not picks_best(made(1, "a", "b"), [-1.0, -1.0])
    assert picks_best(made(1, "a", "b", "c", single=(1, 2)), [0.0, -1.0, -2.0]), "what is not among them does not count"


def test_from_a_file_to_a_suite(base: Path, run: Run, rows_file: Path):
    meta = multiple_choice(config(rows_file, name="even"), policy=base, seed=0, run=run)
    suite = read_suite(run.out)
    assert (suite.suite, suite.kind, len(suite.items), meta["items"]) == ("even", "multiple_choice", 5, 5)
    assert {m.name for m in suite.measures if "accuracy/" in m.name} == {"accuracy/task=x", "accuracy/task=y"}
    assert "guessing gets 0.333" in suite.notes[0]
    for item in suite.items:
        values = item["logp_nats"]
        accuracy = next(m for m in suite.measures if m.name == "accuracy")
        assert accuracy.values[item["id"]] == (values[item["best"]] == max(values))


def test_what_cannot_be_scored_says_why(base: Path, run: Run, rows_file: Path):
    with pytest.raises(ValueError, match=r"question \w+ \('Is 0 even\?'\) has \d+ tokens, and the policy reads at most 256"):
        multiple_choice(config(rows_file, style="truthfulqa"), policy=base, seed=0, run=run)
    rows_file.write_text(rows_file.read_text() + json.dumps({"question": "?", "choices": ["a", "b"], "labels": [1, 0]}) + "\n")
    with pytest.raises(ValueError, match="rows with one answer and rows with labels: make them two suites"):
        multiple_choice(config(rows_file), policy=base, seed=0, run=run)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"template": "Question:"}, "must hold {question}"),
        ({"template": "{question} "}, "end without white space"),
        ({"template": "{question}", "style": "chat"}, "is for style text, and style is chat"),
    ],
)
def test_settings_that_do_not_go_together(settings: dict[str, Any], fault: str):
    with pytest.raises(ValueError, match=fault):
        config(**settings)
