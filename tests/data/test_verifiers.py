import functools
import signal
import threading
import time

import pytest

from data import reasoning, verifiers
from data.records import Message, Prompt
from data.verifiers import Verdict, final_number, stated_answer, verify


def asked(verifier, answer=None, **metadata):
    return Prompt("p1", "test", (Message("user", "?"),), answer=answer, verifier=verifier, metadata=metadata)


def sum_prompt(extraction=None):
    metadata = {"task": "chain_sum", "question": "4 - 1 =", "metadata": {}}
    return asked("reasoning_gym", "3", **metadata, **({"extraction": extraction} if extraction else {}))


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("4", "4"),
        (" 4.\n", "4"),
        ("4.5", "4.5"),
        ("so on...", "so on..."),
        ("<answer> 4 </answer> is it", "4"),
        ("<answer>3</answer> no, <ANSWER>4</ANSWER>", "4"),
        ("We add.\nAnswer: 4.", "4"),
        ("answer: 3\nFinal answer: 4", "4"),
        ("The answer is 4.", "4"),
        ("Thus the final answer is: x y", "x y"),
        ("Answer: 3 <answer>4</answer>", "4"),
        ("I think 4", "I think 4"),
    ],
)
def test_stated_answer(completion, answer):
    assert stated_answer(completion) == answer


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("a 3 and b\n#### 1,018", "1018"),
        ("#### $18.50\nand then 7", "18.50"),
        (r"5 so \boxed{-2}", "-2"),
        ("<answer>12</answer> 13", "12"),
        ("5-3", "3"),
        ("it is -3.", "-3"),
        ("\u2212 7 or \u22127", "-7"),
        ("costs $4 or €5", "5"),
        ("2 + 2 = 4 apples", "4"),
        ("1e3", "1e3"),
        ("x2 y", None),
        ("none", None),
        ("####\nno 9", "9"),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize(
    ("verifier", "answer", "completion", "correct"),
    [
        ("number", "1018", "so it is 1,018", True),
        ("number", "18", "18.0", True),
        ("number", "18", "17 #### 18", True),
        ("number", "18", "1.8", False),
        ("number", "18", "no idea", False),
        ("exact", "blue  whale", "Answer: blue whale.", True),
        ("exact", "blue whale", "a blue whale", False),
        ("math", r"\frac{1}{2}", "The answer is $0.5$", True),
        ("math", "18", "#### 18", True),
        ("math", "18", r"\boxed{19}", False),
        ("math", "(1, 2)", "$(1,2)$", True),
        ("math", "so x is 2:\n\\boxed{2x}", r"\boxed{x + x}", True),
        ("math", "#### 18", "it is 18", True),
    ],
)
def test_verdicts(verifier, answer, completion, correct):
    assert verify(asked(verifier, answer), completion) == Verdict(float(correct), correct)


def test_exact_may_judge_the_last_number():
    assert verify(asked("exact", "4", extraction="last_number"), "2 and 2 are 4 in all").correct


@pytest.mark.parametrize(
    ("completion", "extraction", "correct"),
    [
        ("3", None, True),
        ("3.", None, True),
        ("The answer is 3.", None, True),
        ("<answer>3</answer>", None, True),
        ("4 - 1 = 3", None, False),
        ("4 - 1 = 3", "last_number", True),
        ("3 or 4", "last_number", False),
        ("", None, False),
        ("31", None, False),
    ],
)
def test_a_reasoning_gym_answer_is_extracted_then_scored(completion, extraction, correct):
    verdict = verify(sum_prompt(extraction), completion)
    assert verdict.correct is correct and verdict.error is None
    assert (verdict.score == 1.0) is correct


def test_partial_credit_scores_but_is_not_correct():
    verdict = verify(sum_prompt(), "4 - 1 = 3")
    assert 0 < verdict.score < 0.99 and not verdict.correct


@pytest.mark.parametrize("raised", [RuntimeError("boom"), RecursionError("deep"), KeyError("x")])
def test_a_verifier_that_raises_scores_zero_and_says_so(monkeypatch, raised):
    def fail(*_args, **_kwargs):
        raise raised

    monkeypatch.setattr(reasoning, "load_scorer", lambda task: fail)
    assert verify(sum_prompt(), "3") == Verdict(0.0, False, f"{type(raised).__name__}: {raised}")


@pytest.mark.parametrize("score", [float("nan"), 1.5, -0.1])
def test_a_score_outside_the_unit_interval_is_an_error(monkeypatch, score):
    monkeypatch.setattr(reasoning, "load_scorer", lambda task: lambda answer, entry: score)
    verdict = verify(sum_prompt(), "3")
    assert verdict.score == 0.0 and not verdict.correct and "outside 0 to 1" in str(verdict.error)


def spin(answer, entry):
    while True:
        pass


def test_a_verifier_that_hangs_is_stopped_and_the_alarm_is_put_back(monkeypatch):
    monkeypatch.setattr(verifiers, "VERIFIER_LIMIT_S", 0.05)
    monkeypatch.setattr(reasoning, "load_scorer", lambda task: spin)
    before = signal.getsignal(signal.SIGVTALRM)
    verdict = verify(sum_prompt(), "3")
    assert verdict.error == "TimeoutError: the verifier took more than 0.05 s of processor time"
    assert signal.getsignal(signal.SIGVTALRM) is before


def test_a_slow_machine_or_import_is_no_timeout(monkeypatch):
    """Only processor time of the comparison itself counts: a resumed run must score what it scored before."""

    def slow_load(task):
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        return lambda answer, entry: time.sleep(0.1) or 1.0

    monkeypatch.setattr(verifiers, "VERIFIER_LIMIT_S", 0.05)
    loaded = functools.cache(slow_load)
    monkeypatch.setattr(reasoning, "load_scorer", loaded)
    assert verify(sum_prompt(), "3") == Verdict(1.0, True)


def test_no_alarm_is_left_behind():
    assert verify(sum_prompt(), "3").correct
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0.0, 0.0)


def test_verifiers_work_outside_the_main_thread():
    verdicts = []
    thread = threading.Thread(target=lambda: verdicts.extend([verify(sum_prompt(), "3"), verify(asked("math", "4"), "4")]))
    thread.start()
    thread.join()
    assert [verdict.correct for verdict in verdicts] == [True, True]


def test_a_missing_answer_is_the_verifiers_error_not_the_completions():
    assert "has no answer" in str(verify(asked("number"), "4").error)
    assert "is not a mathematical expression" in str(verify(asked("math", "who\nknows"), "4").error)
    assert "holds no number" in str(verify(asked("number", "blue"), "4").error)


@pytest.mark.parametrize("name", ["none", "nonsense"])
def test_a_prompt_without_a_verifier_is_the_callers_mistake(name):
    with pytest.raises(ValueError, match=rf"prompt p1 has verifier '{name}'.*reasoning_gym, math, number, exact"):
        verify(asked(name, "4"), "4")
