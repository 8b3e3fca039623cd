"""The numbers of a comparison as metrics of each policy, under the names of mlflow/metrics.md, the same for every method."""

import math
from collections.abc import Mapping
from typing import Any

from data.measures import metric_name

GIB = 2**30

# column of the table -> metric, and of an interval its ends
_NAMES = {
    "accuracy": ("eval/accuracy", "eval/accuracy_low", "eval/accuracy_high"),
    "accuracy_greedy": ("eval/accuracy_greedy", "eval/accuracy_greedy_low", "eval/accuracy_greedy_high"),
    "accuracy_gain": ("eval/accuracy_gain", "eval/accuracy_gain_low", "eval/accuracy_gain_high"),
    "win_rate": ("eval/win_rate", "eval/win_rate_low", "eval/win_rate_high"),
    "reward": ("eval/reward",),
    "held_out_reward": ("eval/held_out_reward",),
    "kl_nats": ("eval/kl_nats",),
    "completion_tokens": ("eval/completion_tokens",),
    "distinct_share": ("eval/distinct",),
}


def policy_metrics(content: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Metrics by policy of what ``comparison.json`` says: the table, the suites, the behaviour. What is not finite is left out.

    Where the primary accuracy is the greedy one, the table's accuracy is ``eval/accuracy_greedy``.
    """
    metrics = {row["policy"]: _of_row(row, content.get("primary", "accuracy")) for row in content["rows"]}
    for suite in content.get("suites", []):
        for measure in suite["measures"]:
            for policy, value in measure["policies"].items():
                metrics.setdefault(policy, {}).update(_ends(f"suite/{suite['suite']}/{measure['name']}", value))
    for policy, found in ((content.get("behaviour") or {}).get("policies") or {}).items():
        for measure in found["measures"]:
            metrics.setdefault(policy, {}).update(_ends(f"behaviour/{measure['name']}", measure))
        hacks = sum(finding["severity"] == "hack" for finding in found["findings"])
        metrics.setdefault(policy, {})["behaviour/hacks"] = float(hacks)
    return {policy: {name: value for name, value in own.items() if math.isfinite(value)} for policy, own in metrics.items()}


def cost_metrics(cost: Mapping[str, Any]) -> dict[str, float]:
    """Metrics of what a policy took: its own stage, and with every stage that it was made from; what is not known is left out."""
    named = {
        "cost/seconds": cost.get("seconds"),
        "cost/lineage_seconds": cost.get("lineage_seconds"),
        "cost/tokens": _sum(cost.get("trained_tokens"), cost.get("generated_tokens")),
        "cost/peak_gib": cost["peak_bytes"] / GIB if cost.get("peak_bytes") else None,
        "cost/device_peak_gib": cost["device_peak_bytes"] / GIB if cost.get("device_peak_bytes") else None,
    }
    return {name: float(value) for name, value in named.items() if value is not None}


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _of_row(row: Mapping[str, Any], primary: str) -> dict[str, float]:
    names = _NAMES | ({"accuracy": _NAMES["accuracy_greedy"]} if primary == "accuracy_greedy" else {})
    found = [(named, row[column]) for column, named in names.items() if row.get(column) is not None]
    return {name: number for named, value in found for name, number in zip(named, _numbers(value), strict=False)}


def _numbers(value: Any) -> list[float]:
    """Mean and ends of an interval; a plain number alone; of a mean with its standard error the mean."""
    if not isinstance(value, Mapping):
        return [float(value)]
    return [float(value[part]) for part in ("mean", "low", "high") if value.get(part) is not None]


def _ends(name: str, value: Mapping[str, Any]) -> dict[str, float]:
    metric = metric_name(name)
    return dict(zip((metric, f"{metric}_low", f"{metric}_high"), _numbers(value), strict=False))
