"""Which completions a person is shown beside each other: the same prompts for every policy, by a rule and not by hand."""

import random
from collections.abc import Mapping, Sequence
from typing import Any

from models.seeds import derive_seed

SHOWN = 20
LONGEST_TEXT = 2_000  # characters of a prompt or an answer
RULE = (
    f"Half of the {SHOWN} prompts are drawn at random with the run's seed; the others are those on which the policies' mean scores lie "
    "farthest apart, and among equals those with the most different answers. Of each policy its first sampled answer is shown."
)

_SHOWN_WITH_IT = ("n_tokens", "finished", "correct", "score", "reward", "held_out_reward", "kl_nats")

Rows = Sequence[Mapping[str, Any]]


def side_by_side(answers: Mapping[str, Rows], seed: int) -> list[dict[str, Any]]:
    """At most twenty prompts, each with the first sampled answer of every policy that got it; texts are cut at 2,000 characters.

    Prompts that a policy did not get are left to those that did.
    """
    by_prompt: dict[str, dict[str, Mapping[str, Any]]] = {}
    for policy, rows in answers.items():
        for row in rows:
            by_prompt.setdefault(row["id"], {})[policy] = row
    ids = sorted(by_prompt)
    drawn = random.Random(derive_seed(seed, "side_by_side")).sample(ids, min(SHOWN // 2, len(ids)))
    rest = sorted(set(ids) - set(drawn), key=lambda one: (*(-value for value in _difference(by_prompt[one])), one))
    chosen = [(one, "drawn at random") for one in drawn] + [(one, "policies differ") for one in rest[: SHOWN - len(drawn)]]
    return [_shown(one, why, by_prompt[one]) for one, why in chosen]


def _difference(rows: Mapping[str, Mapping[str, Any]]) -> tuple[float, int]:
    """How far apart the policies' mean scores are, and how many different first answers there are."""
    scores = [_score(row) for row in rows.values()]
    return max(scores) - min(scores), len({row["sampled"][0]["text"] for row in rows.values()})


def _score(row: Mapping[str, Any]) -> float:
    values = [float(answer.get("score", answer.get("reward", 0.0))) for answer in row["sampled"]]
    return sum(values) / len(values)


def _shown(name: str, why: str, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    prompt = next(iter(rows.values())).get("prompt", "")
    return {"id": name, "why": why, "prompt": _cut(prompt), "answers": {policy: _answer(row) for policy, row in rows.items()}}


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    first = row["sampled"][0]
    return {"text": _cut(first["text"])} | {key: first[key] for key in _SHOWN_WITH_IT if key in first}


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}… ({len(text)} characters)"
