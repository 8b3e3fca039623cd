"""What the files of an evaluation, of suites, of behaviour and of over-optimisation say, as promotion reads it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from data.measures import Better, read_suite
from models.promotion import Finding, Quantity

Rows = list[dict[str, Any]]

# Quantities of an evaluation, means over the sampled answers to a prompt: where a row has them, and which direction is better.
SAMPLED: dict[str, tuple[str, Better]] = {
    "accuracy": ("correct", "higher"),
    "score": ("score", "higher"),
    "reward": ("reward", "higher"),
    "held_out_reward": ("held_out_reward", "higher"),
    "kl_nats": ("kl_nats", "lower"),
    "completion_tokens": ("n_tokens", "neither"),
    "finished": ("finished", "higher"),
}
JUDGED = ("reward", "held_out_reward")
JUDGED_KINDS = ("win_rate",)  # suites whose numbers a judge gives
_PROMPT_COLUMNS = ("messages", "prompt")


def evaluation_rows(folder: Path) -> Rows:
    """The rows of ``evaluation.json``.

    Raises:
        ValueError: the file is not there or holds something else.
    """
    return _listed(_json(folder / "evaluation.json"), "rows", folder)


def evaluation_quantities(rows: Rows) -> dict[str, Quantity]:
    """By prompt, the mean of each quantity over the sampled answers; without those that an answer lacks."""
    judged = JUDGED if any("correct" in answer for row in rows for answer in row["sampled"]) else (*JUDGED, "score")
    found = {}
    for name, (key, better) in SAMPLED.items():
        if rows and all(key in answer for row in rows for answer in row["sampled"]):
            values = {row["id"]: _mean([float(answer[key]) for answer in row["sampled"]]) for row in rows}
            found[name] = Quantity(values, better, judged=name in judged)
    if rows and all("correct" in row.get("greedy", {}) for row in rows):
        found["accuracy_greedy"] = Quantity({row["id"]: float(row["greedy"]["correct"]) for row in rows}, "higher")
    return found


def answer_scores(rows: Rows) -> dict[str, list[float]]:
    """By prompt, the judge's score of each sampled answer; empty where one has none."""
    if not all("score" in answer for row in rows for answer in row["sampled"]):
        return {}
    return {row["id"]: [float(answer["score"]) for answer in row["sampled"]] for row in rows}


def suite_quantities(folder: Path) -> tuple[str, dict[str, Quantity]]:
    """Name of a suite, and its measures as SUITE/MEASURE."""
    suite = read_suite(folder)
    judged = suite.kind in JUDGED_KINDS
    measures = {f"{suite.suite}/{one.name}": one for one in suite.measures}
    return suite.suite, {name: Quantity(one.values, one.better, judged, suite.suite, suite.kind) for name, one in measures.items()}


def findings_of(folder: Path, policy: str) -> list[Finding] | None:
    """Findings of ``behaviour.json`` for a policy; None where the policy is not in it. The baseline has none."""
    content = _json(folder / "behaviour.json")
    if policy not in content["policies"]:
        return [] if policy == content.get("baseline") else None
    findings = content["policies"][policy]["findings"]
    return [Finding(str(one["check"]), str(one["severity"]), str(one["message"])) for one in findings]


def was_overoptimised(folder: Path) -> bool:
    """What ``overoptimisation.json`` concludes.

    Raises:
        ValueError: it concludes nothing.
    """
    found = _json(folder / "overoptimisation.json").get("overoptimised")
    if not isinstance(found, bool):
        raise ValueError(f"{folder / 'overoptimisation.json'} says overoptimised={found!r}, which is neither true nor false")
    return found


# Prompts


def held_out_ids(data: Path) -> list[str]:
    """Ids of all held-out prompts of curated data."""
    return pq.read_table(data / "test_prompts.parquet", columns=["id"])["id"].to_pylist()


def trained_prompts(data: Path, tables: Sequence[Path]) -> int:
    """How many held-out prompts stand, word for word, in one of the training tables."""
    held_out = {_key(row) for row in _column(data / "test_prompts.parquet", "messages")}
    seen: set[str] = set()
    for path in tables:
        names = pq.read_schema(path).names
        column = next((name for name in _PROMPT_COLUMNS if name in names), None)
        if column is not None:
            seen |= held_out & {_key(_prompt_of(row)) for row in _column(path, column)}
    return len(seen)


def training_tables(folder: Path) -> list[Path]:
    """Tables of an artifact that a model may have learned from: all but the held-out ones."""
    return [path for path in sorted(folder.glob("*.parquet")) if not path.name.startswith("test_")]


def _column(path: Path, name: str) -> list[Any]:
    return pq.read_table(path, columns=[name])[name].to_pylist()


def _prompt_of(messages: Sequence[Mapping[str, str]]) -> Sequence[Mapping[str, str]]:
    """A conversation without the answer at its end."""
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def _key(messages: Sequence[Mapping[str, str]]) -> str:
    return json.dumps([[message["role"], message["content"]] for message in messages])


# Files


def _json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__} where an object was expected")
    return content


def _listed(content: Mapping[str, Any], name: str, folder: Path) -> Rows:
    rows = content.get(name)
    if not isinstance(rows, list):
        raise ValueError(f"{folder} holds no list of {name}")
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
