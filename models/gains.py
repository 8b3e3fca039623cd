"""What a policy gains over the baseline on the same prompts, and whether the gain is more than chance.

A gain is marked ``*`` where its own paired 95 % interval excludes zero. Of several policies one in twenty would be marked by chance, so
``**`` says that it stays significant by Holm's step-down over all policies of the same quantity. Different quantities are not corrected
for each other: the table has one question a column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from data.intervals import bootstrap_p_value, holm, paired_bootstrap
from data.measures import Measure, Suite

Rows = Sequence[Mapping[str, Any]]
Gains = dict[str, dict[str, dict[str, Any]]]


def paired_values(rows: Rows, quantity: str, primary: str) -> list[float] | None:
    """One value a prompt, None where an answer has no such value. ``accuracy`` is the comparison's primary one."""
    if quantity == "accuracy":
        own = [[row["greedy"]] for row in rows] if primary == "accuracy_greedy" else [row["sampled"] for row in rows]
        return _means(own, "correct")
    return _means([row["sampled"] for row in rows], quantity)


def _means(answers: Sequence[Sequence[Mapping[str, Any]]], key: str) -> list[float] | None:
    if not all(key in answer for own in answers for answer in own):
        return None
    return [sum(float(answer[key]) for answer in own) / len(own) for own in answers]


def gain_of(own: Sequence[float], baseline: Sequence[float], seed: int, resamples: int) -> dict[str, Any]:
    """Mean difference with its paired interval and p-value."""
    differences = [a - b for a, b in zip(own, baseline, strict=True)]
    return asdict(paired_bootstrap(differences, seed=seed, n=resamples)) | {"p": bootstrap_p_value(differences, seed=seed, n=resamples)}


def mark_all(gains: Gains) -> None:
    """Give every gain its ``mark``: "", "*" or "**", by policy and quantity."""
    for quantity in {name for own in gains.values() for name in own}:
        tested = {policy: own[quantity] for policy, own in gains.items() if quantity in own}
        kept = holm({policy: gain["p"] for policy, gain in tested.items()})
        for policy, gain in tested.items():
            excludes_zero = gain["low"] > 0 or gain["high"] < 0
            gain["mark"] = "" if not excludes_zero else "**" if policy in kept else "*"


def suite_table(suites: Mapping[str, Mapping[str, Suite]], baseline: str, gain: Callable[..., dict[str, Any]]) -> list[dict[str, Any]]:
    """Suites by policy and name, turned into one entry a suite with its measures, each with every policy's value and gain.

    A gain is missing where the quantity is no mean over items, and where the two were measured on different items: the notes say so.
    """
    names = list(dict.fromkeys(name for own in suites.values() for name in own))
    return [_suite_entry(name, {policy: own[name] for policy, own in suites.items() if name in own}, baseline, gain) for name in names]


def _suite_entry(name: str, by_policy: Mapping[str, Suite], baseline: str, gain: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    measured = {policy: {one.name: one for one in suite.measures} for policy, suite in by_policy.items()}
    notes = list(dict.fromkeys(note for suite in by_policy.values() for note in suite.notes))
    measures = []
    for measure in dict.fromkeys(one for own in measured.values() for one in own):
        values = {policy: own[measure] for policy, own in measured.items() if measure in own}
        gains: Gains = {}
        for policy, one in values.items():
            before = values.get(baseline)
            if policy == baseline or before is None or not one.values or not before.values:
                continue
            if one.values.keys() != before.values.keys():
                notes.append(f"{measure}: {policy} and {baseline} were measured on different items, so they are not paired.")
                continue
            gains[policy] = {measure: gain(list(one.values.values()), [before.values[item] for item in one.values])}
        mark_all(gains)
        found = {policy: _entry(one) | {"gain": gains.get(policy, {}).get(measure)} for policy, one in values.items()}
        measures.append({"name": measure, "better": next(iter(values.values())).better, "policies": found})
    return {"suite": name, "kind": next(iter(by_policy.values())).kind, "notes": notes, "measures": measures}


def _entry(one: Measure) -> dict[str, float]:
    return {"mean": one.mean, "low": one.low, "high": one.high}
