"""Rows of multiple choice in their three forms, and what no row may be."""

from typing import Any

import pytest

from data.configs import SourceConfig
from data.multiple_choice import Question, question_of
from data.sources import BadRow
from data.suite_rows import items_of

PLAIN = {"question": "2 + 2?", "choices": ["3", "4", "5"], "answer": 1}
TRUTHFUL = {
    "question": "What happens?",
    "mc1_targets": {"Nothing.": 1, "You die.": 0},
    "mc2_targets": {"All is well.": 1, "Nothing.": 1, "You die.": 0},
}


def test_one_right_choice():
    found = question_of(PLAIN | {"task": "sums", "difficulty": 2})
    assert found == Question(found.id, "2 + 2?", ("3", "4", "5"), (0, 1, 2), 1, None, {"task": "sums", "difficulty": "2"})
    assert found.id != question_of(PLAIN | {"answer": 2}).id


def test_several_true_choices_of_which_the_first_is_the_best():
    """Among the best and the false ones exactly one is right: the second true choice stands aside."""
    found = question_of({"question": "q", "choices": ["a", "b", "c", "d"], "labels": [0, 1, 1, 0]})
    assert (found.single, found.best, found.true) == ((0, 1, 3), 1, (False, True, True, False))


def test_truthfulqa_as_published_and_as_on_the_hub():
    found = question_of(TRUTHFUL)
    assert found.choices == ("All is well.", "Nothing.", "You die.")
    assert (found.single, found.best, found.true) == ((1, 2), 1, (True, True, False))
    hub = {
        name: {"choices": list(TRUTHFUL[name]), "labels": list(TRUTHFUL[name].values())}  # type: ignore[attr-defined]
        for name in ("mc1_targets", "mc2_targets")
    }
    assert question_of({"question": TRUTHFUL["question"], **hub}) == found


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({**PLAIN, "question": " "}, "question is empty"),
        ({**PLAIN, "choices": "345"}, "not a list of at least two texts"),
        ({**PLAIN, "choices": ["3"]}, "not a list of at least two texts"),
        ({**PLAIN, "choices": ["3", "", "5"]}, "choice is empty"),
        ({**PLAIN, "choices": ["3", 4, "5"]}, "choice is int, not text"),
        ({**PLAIN, "choices": ["3", "4", "3"]}, "two choices are the same"),
        ({**PLAIN, "answer": 3}, "answer is 3, not the number of one of the 3 choices, counted from 0"),
        ({**PLAIN, "answer": "4"}, "answer is '4'"),
        ({**PLAIN, "answer": True}, "answer is True"),
        ({**PLAIN, "labels": [1, 0]}, "3 choices need as many labels"),
        ({**PLAIN, "labels": [1, 1, 1]}, "of both kinds"),
        ({**PLAIN, "labels": [0, 0, 0]}, "of both kinds"),
        ({**PLAIN, "labels": [0, 2, 0]}, "not a list of 0 and 1"),
        (TRUTHFUL | {"mc1_targets": {"Nothing.": 1, "All is well.": 1}}, "mc1_targets has 2 true choices"),
        (TRUTHFUL | {"mc1_targets": {"Nothing.": 1, "Other.": 0}}, "a choice of mc1_targets is not in mc2_targets"),
        (TRUTHFUL | {"mc1_targets": {"You die.": 1, "Nothing.": 0}}, "is true in one and false in the other"),
        (TRUTHFUL | {"mc2_targets": None}, "mc2_targets is neither a table"),
        (TRUTHFUL | {"mc1_targets": {"choices": ["Nothing.", "You die."], "labels": [1]}}, "mc1_targets is neither"),
    ],
)
def test_what_is_no_question_is_refused(row: dict[str, Any], fault: str):
    with pytest.raises(BadRow, match=fault):
        question_of(row)


def test_truthfulqa_is_read_whole(shared_data):
    """817 questions (Lin et al. 2022); guessing among the choices of MC1 is right on 22.3 % of them."""
    questions = items_of(SourceConfig(kind="file", name=str(shared_data / "truthfulqa/mc_task.json")), question_of)
    assert len(questions) == 817
    assert sum(1 / len(question.single) for question in questions) / 817 == pytest.approx(0.2225, abs=1e-4)
    assert all(question.true and question.true[question.best] for question in questions)
