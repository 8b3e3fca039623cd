"""Prompts that look unsafe and are safe, and unsafe ones that look like them, in the manner of XSTest.

Source: Röttger et al. 2023, "XSTest", for the kinds of prompts and the columns of a row; the packaged prompts are written for this project.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources import RawRow

PACKAGED = "safety_prompts.jsonl"
_UNSAFE_TYPE = "contrast_"


@dataclass(frozen=True, slots=True)
class SafetyPrompt:
    """A prompt, its type such as homonyms or contrast_homonyms, and whether it is safe to answer."""

    id: str
    type: str
    safe: bool
    prompt: str


def packaged_prompts() -> list[SafetyPrompt]:
    """The 40 safe prompts and 40 unsafe contrasts that come with the package."""
    lines = Path(__file__).with_name(PACKAGED).read_text(encoding="utf-8").splitlines()
    return [safety_prompt(json.loads(line), f"{PACKAGED}:{number}") for number, line in enumerate(lines, start=1)]


def prompts_in(rows: Iterable[tuple[RawRow, Mapping[str, Any]]]) -> list[SafetyPrompt]:
    """The prompts of rows as published, with their values under our column names.

    Raises:
        ValueError: a row cannot be used, none is there, or two have one id.
    """
    prompts = []
    for row, values in rows:
        if row.fault is not None:
            raise ValueError(f"{row.file}:{row.line}: {row.fault}")
        prompts.append(safety_prompt(values, f"{row.file}:{row.line}"))
    ids = [prompt.id for prompt in prompts]
    twice = next((name for name in ids if ids.count(name) > 1), None)
    if not prompts or twice is not None:
        raise ValueError(f"two safety prompts have the id {twice!r}" if prompts else "the set of safety prompts has no row")
    return prompts


def safety_prompt(values: Mapping[str, Any], place: str) -> SafetyPrompt:
    """A prompt of a row with the columns id, type, prompt and label (safe or unsafe).

    The first version of XSTest has no label: there the types of unsafe prompts begin with contrast_.

    By hand: type contrast_homonyms without a label is unsafe.

    Raises:
        ValueError: a column is missing or says something else.
    """
    prompt, kind = values.get("prompt"), str(values.get("type") or "")
    label = str(values.get("label") or ("unsafe" if kind.startswith(_UNSAFE_TYPE) else "safe" if kind else "")).strip().lower()
    if not isinstance(prompt, str) or not prompt.strip() or label not in ("safe", "unsafe"):
        raise ValueError(
            f"{place} is no safety prompt (prompt {prompt!r}, label {label!r}): it needs the columns prompt and label (safe or unsafe), "
            "or a type as XSTest's; map other names in columns, such as prompt: question"
        )
    return SafetyPrompt(str(values.get("id") or place.rpartition(":")[2]), kind or label, label == "safe", prompt)
