"""Sets of answers that people compared, by which a judge is measured: PandaLM and LLMBar."""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.judgements import Candidates
from data.records import Message, record_id

FIRST, SECOND = 1, -1


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """Two answers and what people say of them: 1 the first is better, -1 the second, 0 neither. ``votes``: one a person."""

    candidates: Candidates
    label: int
    votes: tuple[int, ...]
    subset: str


def load_judge_set(kind: str, path: Path) -> list[JudgedPair]:
    """The rows of a published file, or of all JSON files of a folder, in order.

    pandalm: Wang et al. 2023, ``testset-v1.json``, three annotators, the majority counts. llmbar: Zeng et al. 2023, one agreed label,
    one file a subset (natural, and adversarial where the worse answer looks better).

    Raises:
        FileNotFoundError: there is nothing to read.
        ValueError: a file or a row has another form.
    """
    files = judge_set_files(path)
    if not files:
        raise FileNotFoundError(f"no JSON file of the judge set {kind} at {path}: give the file, or the folder that holds the files")
    return [_row(kind, subset, file, number, row) for subset, file in files.items() for number, row in enumerate(_rows(file))]


def judge_set_files(path: Path) -> dict[str, Path]:
    """The files of a set by the name of their subset: a file itself, or all JSON files in a folder and below it."""
    if path.is_dir():
        return {file.relative_to(path).with_suffix("").as_posix(): file for file in sorted(path.rglob("*.json"))}
    return {path.stem: path} if path.is_file() else {}


def majority(votes: tuple[int, ...]) -> int:
    """What most votes say; a tie where no answer has more than any other.

    By hand: (1, 1, -1) is 1; (1, 0, -1) is 0; (-1, 0, 0) is 0.
    """
    ranked = Counter(votes).most_common()
    return ranked[0][0] if len(ranked) == 1 or ranked[0][1] > ranked[1][1] else 0


def _rows(file: Path) -> list[Any]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(rows, list):
        raise ValueError(f"{file} holds {type(rows).__name__}, not a list of rows")
    return rows


def _row(kind: str, subset: str, file: Path, number: int, row: Mapping[str, Any]) -> JudgedPair:
    try:
        asked, answers, votes = _PARSERS[kind](row)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"row {number} of {file} is not a row of {kind}: {error!r}") from error
    prompt = (Message("user", asked),)
    candidates = Candidates(record_id(prompt, answers), kind, prompt, answers, ("", ""))
    return JudgedPair(candidates, majority(votes), votes, subset)


def _pandalm(row: Mapping[str, Any]) -> tuple[str, tuple[str, str], tuple[int, ...]]:
    asked = f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]
    votes = tuple(_vote(row[f"annotator{number}"]) for number in (1, 2, 3))
    return asked, (str(row["response1"]), str(row["response2"])), votes  # a few answers were read as true and false when the set was made


def _llmbar(row: Mapping[str, Any]) -> tuple[str, tuple[str, str], tuple[int, ...]]:
    return row["input"], (row["output_1"], row["output_2"]), (_vote(row["label"]),)


def _vote(label: int) -> int:
    return {0: 0, 1: FIRST, 2: SECOND}[label]


_PARSERS: dict[str, Callable[[Mapping[str, Any]], tuple[str, tuple[str, str], tuple[int, ...]]]] = {"pandalm": _pandalm, "llmbar": _llmbar}
