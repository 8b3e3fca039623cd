"""Rows of suites: all are read, or none; drawn by the seed; prompts of files and of tasks."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from data.configs import SourceConfig
from data.records import Document, Message, record_id
from data.suite_rows import answered_prompts, held_out_prompts, items_of, prompts_of, text_in
from data.verifiers import verify

Write = Callable[..., SourceConfig]
SUMS = {"min_terms": 2, "max_terms": 3, "min_digits": 1, "max_digits": 2}


@pytest.fixture
def source(tmp_path: Path) -> Write:
    """Makes a source of the rows given, with further settings."""

    def write(rows: list[Any], **settings: Any) -> SourceConfig:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return SourceConfig(kind="file", name=str(path), **settings)

    return write


def document(row: Mapping[str, Any]) -> Document:
    text = text_in(row, "text")
    return Document(record_id(text), "", text)


def test_items_in_order_each_once(source: Write):
    found = items_of(source([{"body": text} for text in "abca"], columns={"text": "body"}), document)
    assert [item.text for item in found] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([{"text": "a"}, {"text": ""}], r"rows\.jsonl:2 cannot be used \(empty: text is empty\)"),
        ([{"text": "a"}, "text"], r"rows\.jsonl:2 cannot be used \(wrong_type: a row is an object"),
        ([{"word": "a"}], r"text is NoneType, not text; the columns are word"),
        ([{"text": "\ud800"}], "not UTF-8"),
        ([], "holds no rows"),
    ],
)
def test_a_row_that_cannot_be_used_stops_the_reading(source: Write, rows: list[Any], fault: str):
    with pytest.raises(ValueError, match=fault):
        items_of(source(rows), document)


def test_prompts_of_a_file_with_their_answers_and_labels(source: Write):
    rows = [{"q": f"{i} + 1?", "a": f"It is {i + 1}.", "level": i % 2, "task": "sums"} for i in range(6)]
    own = source(rows, columns={"prompt": "q", "answer": "a", "difficulty": "level"}, verifier="number", instruction="Be brief.")
    prompts = prompts_of(own, 0, 0)
    assert len(prompts) == 6 and prompts[3].messages == (Message("user", "3 + 1?\nBe brief."),)
    assert (prompts[3].answer, prompts[3].metadata) == ("4", {"task": "sums", "difficulty": 1})
    assert verify(prompts[3], "so 4").correct
    few = prompts_of(own, 3, 1)
    assert [p for p in prompts if p in few] == few and len(few) == 3
    assert few == prompts_of(own, 3, 1) and {p.id for seed in range(20) for p in prompts_of(own, 3, seed)} == {p.id for p in prompts}


def test_prompts_need_a_verifier_and_an_answer(source: Write):
    rows = [{"prompt": "a", "answer": "1"}, {"prompt": "b"}]
    with pytest.raises(ValueError, match="names no verifier, so no answer can be right"):
        prompts_of(source(rows), 0, 0)
    with pytest.raises(ValueError, match=r"rows\.jsonl:2 cannot be used \(no_answer"):
        prompts_of(source(rows, verifier="number"), 0, 0)
    with pytest.raises(ValueError, match=r"rows\.jsonl:1 cannot be used \(no_prompt"):
        prompts_of(source([{"text": "a"}], verifier="number"), 0, 0)


def test_prompts_of_a_task_are_different_and_the_seeds():
    task = SourceConfig(name="chain_sum", task=SUMS)
    prompts = prompts_of(task, 40, 3)
    assert len({prompt.id for prompt in prompts}) == 40 and prompts == prompts_of(task, 40, 3) != prompts_of(task, 40, 4)
    assert all(verify(prompt, str(prompt.answer)).correct for prompt in prompts)
    with pytest.raises(ValueError, match="has no end: say how many"):
        prompts_of(task, 0, 3)


def test_a_task_with_few_questions_says_how_many():
    tiny = SourceConfig(name="chain_sum", task={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1})
    with pytest.raises(ValueError, match=r"gives only \d+ different questions, 5000 are asked for"):
        prompts_of(tiny, 5000, 0)


def test_prompts_with_the_answers_of_their_rows(source: Write):
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "Yes."}]
    (found,) = answered_prompts(source([{"messages": turns}, {"messages": turns}]))
    assert (found.prompt.messages, found.answer) == ((Message("user", "a?"),), "Yes.")
    assert [one.answer for one in answered_prompts(source([{"prompt": "a?"}, {"prompt": "b?"}]))] == ["", ""]
    with pytest.raises(ValueError, match=r"rows\.jsonl:2 cannot be used"):
        answered_prompts(source([{"messages": turns}, {"messages": []}]))
    with pytest.raises(ValueError, match=r"rows\.jsonl:1 cannot be used \(no_prompt"):
        answered_prompts(source([{"text": "a"}]))
    with pytest.raises(ValueError, match="the suite x asks the held-out prompts, and it is given no data"):
        held_out_prompts(None, "x")
