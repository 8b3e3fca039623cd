"""Whatever gives one completion of one prompt a score from its text: verifiers, functions of the user's, rules on scripts and formats."""

import functools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from typing import Any

from data.records import Prompt
from data.verifiers import Verdict

Judge = Callable[[Prompt, str], Verdict]


def judge_of(function: Callable[[Prompt, str], Any]) -> Judge:
    """A function as a judge. What it raises, and a number that is not finite, become score 0 with the error in words."""
    return lambda prompt, completion: _verdict(function, prompt, completion)


def _verdict(function: Callable[[Prompt, str], Any], prompt: Prompt, completion: str) -> Verdict:
    try:
        score = float(function(prompt, completion))
    except Exception as error:  # a user's function may raise anything; one bad completion must not cost the stage
        return Verdict(0.0, False, repr(error))
    if not math.isfinite(score):
        return Verdict(0.0, False, f"the judge returned {score}")
    return Verdict(score, score >= 1.0)


def language_consistency(prompt: Prompt, completion: str) -> float:
    """Share of a completion's letters that belong to the script of most letters of the last message; 1 where either has no letter.

    By hand: to a question in Latin letters, "да ok" scores 2/4. Chinese characters and both kana count as one script.

    Source: DeepSeek-AI 2025 (R1), section 2.3.2, with scripts for languages.
    """
    asked, answered = _scripts(prompt.messages[-1].content), _scripts(completion)
    if not asked or not answered:
        return 1.0
    script, _ = asked.most_common(1)[0]
    return answered[script] / answered.total()


def format_judge(pattern: str) -> Judge:
    """1 where a regular expression matches the whole completion (a dot matches line ends too), else 0.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        compiled = re.compile(pattern, re.DOTALL)
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from error
    return judge_of(lambda prompt, completion: float(compiled.fullmatch(completion) is not None))


def _scripts(text: str) -> Counter[str]:
    return Counter(_script(letter) for letter in unicodedata.normalize("NFKC", text) if letter.isalpha())


@functools.lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    """The first word of a letter's Unicode name, which is its script."""
    script = unicodedata.name(letter, "UNKNOWN").split()[0]
    return "CJK" if script in ("HIRAGANA", "KATAKANA") else script
