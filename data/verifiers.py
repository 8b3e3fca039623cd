"""Verifiers: is a completion right? Rules, not models. A verifier that raises scores 0 and says so."""

import contextlib
import logging
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from data import reasoning
from data.records import Prompt

CORRECT_SCORE = 0.99  # partial credit never counts as correct
# Symbolic comparison of hostile input may take forever. Processor time, not time of day: a busy machine must not change a score.
VERIFIER_LIMIT_S = 5.0
MAX_JUDGED_CHARACTERS = 20_000

_ANSWER_TAG = re.compile(r"<answer>(.*?)</answer>", re.DOTALL | re.IGNORECASE)
_ANSWER_LINE = re.compile(
    r"(?:^[ \t]*(?:final )?answer[ \t]*:|\bthe (?:final |correct )?answer is\b:?)[ \t]*([^\n]+)", re.IGNORECASE | re.MULTILINE
)
_HASH_ANSWER = re.compile(r"####[ \t]*([^\n]+)")
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_NUMBER = re.compile(r"(?<![\w.])[-+\u2212]?[$\u20ac\u00a3]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?(?![\d])")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of one completion: score in [0, 1], whether it is right, and the error where the verifier itself failed."""

    score: float
    correct: bool
    error: str | None = None


def verify(prompt: Prompt, completion: str) -> Verdict:
    """Judge a completion with its prompt's own verifier.

    Raises:
        ValueError: the prompt names no verifier, or one that does not exist. What the verifier raises is caught: score 0 and ``error`` set.
    """
    if prompt.verifier not in _VERIFIERS:
        raise ValueError(f"prompt {prompt.id} has verifier {prompt.verifier!r}: set its source's to one of {', '.join(_VERIFIERS)}")
    try:
        _load(prompt)
        with _time_limit(VERIFIER_LIMIT_S):
            score = float(_VERIFIERS[prompt.verifier](prompt, completion[-MAX_JUDGED_CHARACTERS:]))
    except Exception as error:  # a third-party scorer may raise anything on hostile text; the caller counts it
        return Verdict(0.0, False, f"{type(error).__name__}: {error}")
    if not 0.0 <= score <= 1.0:  # also false for NaN
        return Verdict(0.0, False, f"ValueError: the verifier scored {score}, outside 0 to 1")
    return Verdict(score, score >= CORRECT_SCORE)


def stated_answer(completion: str) -> str:
    """The answer a completion states, without a final full stop: the last <answer> tag, else what follows the last 'Answer:' or
    'the answer is', else all of it.
    """
    tags = _ANSWER_TAG.findall(completion)
    lines = _ANSWER_LINE.findall(completion)
    answer = tags[-1] if tags else lines[-1] if lines else completion
    answer = answer.strip()
    return answer[:-1].rstrip() if answer.endswith(".") and not answer.endswith("..") else answer


def stated_form(completion: str) -> str:
    """In which of the forms that verifiers read a completion states its answer, "" for none: answer_tag, boxed, hash or answer_line."""
    forms = {"answer_tag": _ANSWER_TAG, "boxed": _BOXED, "hash": _HASH_ANSWER, "answer_line": _ANSWER_LINE}
    return next((form for form, pattern in forms.items() if pattern.search(completion)), "")


def final_number(completion: str) -> str | None:
    """The number a solution ends on: after ``####``, in the last ``\\boxed{}`` or ``<answer>``, else the last number of the text."""
    for pattern in (_HASH_ANSWER, _BOXED, _ANSWER_TAG):
        found = pattern.findall(completion)
        if found and _NUMBER.search(found[-1]):
            return _plain_number(_NUMBER.findall(found[-1])[-1])
    numbers = _NUMBER.findall(completion)
    return _plain_number(numbers[-1]) if numbers else None


def _plain_number(text: str) -> str:
    return re.sub(r"[,$\u20ac\u00a3+]", "", text).replace("\u2212", "-")


def _judged_text(prompt: Prompt, completion: str) -> str:
    if prompt.metadata.get("extraction") == "last_number":
        return final_number(completion) or ""
    return stated_answer(completion)


def _expected(prompt: Prompt) -> str:
    if prompt.answer is None:
        raise ValueError(f"prompt {prompt.id} has no answer to compare with")
    return prompt.answer


def _load(prompt: Prompt) -> None:
    """Import what the verifier needs, before its time is measured."""
    if prompt.verifier == "reasoning_gym":
        reasoning.load_scorer(prompt.metadata["task"])
    elif prompt.verifier == "math":
        import math_verify  # noqa: F401


def _reasoning_gym(prompt: Prompt, completion: str) -> float:
    data = prompt.metadata
    answer = _judged_text(prompt, completion)
    return reasoning.score(data["task"], answer, question=data["question"], expected=prompt.answer, metadata=data["metadata"])


def _exact(prompt: Prompt, completion: str) -> float:
    return float(" ".join(_judged_text(prompt, completion).split()) == " ".join(_expected(prompt).split()))


def _number(prompt: Prompt, completion: str) -> float:
    found, expected = final_number(completion), final_number(_expected(prompt))
    if expected is None:
        raise ValueError(f"the answer {prompt.answer!r} of prompt {prompt.id} holds no number")
    return float(found is not None and _decimal(found) == _decimal(expected))


def _decimal(text: str) -> Decimal:
    try:
        return Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a number") from error


def _math(prompt: Prompt, completion: str) -> float:
    import math_verify

    # Its own time limits go by the clock and only work in the main thread; it warns at each call that they are off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    expected = _hash_answer_or_all(_expected(prompt))
    is_formula = not re.search(r"\$|\\boxed|\n", expected)
    gold = math_verify.parse(f"${expected}$" if is_formula else expected, parsing_timeout=0, raise_on_error=True)
    if not gold:
        raise ValueError(f"the answer {prompt.answer!r} of prompt {prompt.id} is not a mathematical expression")
    found = math_verify.parse(_hash_answer_or_all(completion), parsing_timeout=0, raise_on_error=True)
    return float(math_verify.verify(gold, found, timeout_seconds=0, raise_on_error=True))


def _hash_answer_or_all(completion: str) -> str:
    found = _HASH_ANSWER.findall(completion)
    return found[-1] if found else completion


@contextlib.contextmanager
def _time_limit(limit_s: float) -> Iterator[None]:
    """Raise TimeoutError in the body after ``limit_s`` of processor time; no limit outside the main thread, which alone gets signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def expired(_signum: int, _frame: object) -> None:
        raise TimeoutError(f"the verifier took more than {limit_s} s of processor time")

    before = signal.signal(signal.SIGVTALRM, expired)
    signal.setitimer(signal.ITIMER_VIRTUAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


_VERIFIERS: dict[str, Callable[[Prompt, str], float]] = {
    "reasoning_gym": _reasoning_gym,
    "math": _math,
    "number": _number,
    "exact": _exact,
}
