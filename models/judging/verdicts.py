"""The judge's answer as data: a strict form, read or refused."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data.judgements import BETTER, SLIGHTLY_BETTER, SLIGHTLY_WORSE, TIE, WORSE

Word = Literal["A_better", "A_slightly_better", "tie", "B_slightly_better", "B_better"]
VALUES: dict[str, int] = {
    "A_better": BETTER,
    "A_slightly_better": SLIGHTLY_BETTER,
    "tie": TIE,
    "B_slightly_better": SLIGHTLY_WORSE,
    "B_better": WORSE,
}
GRADED = tuple(VALUES)
PLAIN = ("A_better", "tie", "B_better")
_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL | re.IGNORECASE)


class Verdict(BaseModel):
    """What a judge writes."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    reasoning: str = ""
    verdict: Word


@dataclass(frozen=True, slots=True)
class Answer:
    """A judge's answer to one question: the verdict from the side of the answer shown first; where it is None, ``reason`` says why.

    ``share``: where it can be read, the probability that the first is better, ties counting half.
    """

    verdict: int | None
    reason: str = ""
    share: float | None = None


UNREADABLE = "unreadable answer"


def read_verdict(text: str) -> int | None:
    """The verdict from the side of answer A, BETTER to WORSE; None where the text is anything but one JSON object of the right form.

    One pair of code fences around it is allowed; words before or behind, further keys, a key twice and other verdicts are not.

    By hand: '{"verdict": "B_better"}' is -2; 'A_better' and '{"verdict": "A"}' are None.
    """
    return read_word(text, Verdict, VALUES)


def read_word(text: str, form: type[BaseModel], values: Mapping[str, int]) -> int | None:
    """The value of the field ``verdict`` of a JSON object of another strict form; None where the text is anything else."""
    fenced = _FENCED.fullmatch(text)
    try:
        row = json.loads(fenced.group(1) if fenced else text, object_pairs_hook=_once)
        return values[form.model_validate(row).model_dump()["verdict"]]
    except (ValueError, ValidationError, RecursionError):
        return None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        raise ValueError("a key stands there twice")
    return row


def json_schema() -> dict[str, Any]:
    """The form as a JSON schema, for servers that can be held to one."""
    return Verdict.model_json_schema()
