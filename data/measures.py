"""What a suite of evaluation found of one policy: quantities with intervals, and their values item by item, so that policies can be paired.

suite.json    {"suite": name, "kind": kind, "measures": [{name, mean, low, high, better, values}, ...], "items": [...], "notes": [...]}
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.intervals import Interval, paired_bootstrap, ratio_bootstrap, wilson
from data.records import record_id

Better = Literal["higher", "lower", "neither"]
FILE = "suite.json"
_NOT_IN_A_METRIC = re.compile(r"[^\w\-. :]+")
_LONGEST_METRIC = 240  # MLflow takes 250 characters; _high comes behind


@dataclass(frozen=True, slots=True)
class Measure:
    """One quantity of one policy, with its 95 % interval.

    ``name``: without the suite, the same for every policy, such as ``accuracy`` or ``accuracy/task=chain_sum``.
    ``values``: by item id, what the mean is over; empty for a quantity that is no mean over items, which cannot be paired.
    ``better``: which direction is an improvement.
    """

    name: str
    mean: float
    low: float
    high: float
    better: Better = "higher"
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Suite:
    """All quantities of one suite for one policy. ``items``: rows for people; ``notes``: what to know when reading the numbers."""

    suite: str
    kind: str
    measures: Sequence[Measure]
    items: Sequence[Mapping[str, Any]] = ()
    notes: Sequence[str] = ()


def rate(name: str, values: Mapping[str, float], better: Better = "higher") -> Measure:
    """A share of items, each 0 or 1, with Wilson's interval. Raises ValueError for another value, or no item."""
    other = next(((item, value) for item, value in values.items() if value not in (0, 1)), None)
    if other:
        raise ValueError(f"{name} is a share, and item {other[0]} has {other[1]}: values must be 0 or 1; use mean for others")
    interval = wilson(int(sum(values.values())), len(values))
    return Measure(name, interval.mean, interval.low, interval.high, better, dict(values))


def mean(name: str, values: Mapping[str, float], *, seed: int, resamples: int, better: Better = "higher") -> Measure:
    """A mean over items with its bootstrap interval. Raises ValueError for no item or a value that is not finite."""
    interval = paired_bootstrap(list(values.values()), seed=seed, n=resamples)
    return Measure(name, interval.mean, interval.low, interval.high, better, dict(values))


def share(name: str, values: Mapping[str, float], *, seed: int, resamples: int, better: Better = "higher") -> Measure:
    """A mean of shares within [0, 1]. Wilson's interval where each is 0 or 1, which never has no width; else the bootstrap's."""
    if all(value in (0, 1) for value in values.values()):
        return rate(name, values, better)
    return mean(name, values, seed=seed, resamples=resamples, better=better)


def ratio(name: str, parts: Mapping[str, tuple[float, float]], *, seed: int, resamples: int, better: Better = "higher") -> Measure:
    """Sum over items of the first part, over the sum of the second, with its bootstrap interval over items.

    An item's value is its first part over the mean of the second parts, so that the mean of the values is the ratio: policies that share
    the second parts (tokens of the same documents, instructions of the same prompts) are paired by them.

    By hand: a (2, 1), b (6, 2): 8/3, of the values 4/3 and 4.

    Raises:
        ValueError: as ``ratio_bootstrap``.
    """
    interval = ratio_bootstrap([a for a, _ in parts.values()], [b for _, b in parts.values()], seed=seed, n=resamples)
    typical = sum(b for _, b in parts.values()) / len(parts)
    values = {item: a / typical for item, (a, _) in parts.items()}
    return Measure(name, interval.mean, interval.low, interval.high, better, values)


def broken_down(
    name: str, values: Mapping[str, float], labels: Mapping[str, Mapping[str, str]], *, seed: int, resamples: int
) -> list[Measure]:
    """The share of all items, then that of each label, such as ``accuracy/task=chain_sum``. ``labels``: of each item, by kind."""
    members: dict[str, dict[str, float]] = {}
    for item, own in labels.items():
        for kind, label in own.items():
            members.setdefault(f"{name}/{kind}={label}", {})[item] = values[item]
    named = {name: values, **dict(sorted(members.items()))}
    return [share(each, own, seed=seed, resamples=resamples) for each, own in named.items()]


def gain(own: Measure, baseline: Measure, *, seed: int, resamples: int) -> Interval | None:
    """Own minus baseline over the same items, by paired bootstrap; None where the quantity is no mean over items.

    Raises:
        ValueError: the two were measured on different items.
    """
    if not own.values or not baseline.values:
        return None
    if own.values.keys() != baseline.values.keys():
        raise ValueError(f"{own.name} was measured on different items ({len(own.values)} and {len(baseline.values)}): use the same data")
    pairs = [(value, baseline.values[item]) for item, value in own.values.items()]
    return paired_bootstrap([a for a, _ in pairs], [b for _, b in pairs], seed=seed, n=resamples)


def metrics_of(suite: Suite) -> dict[str, float]:
    """What a stage reports of a suite: ``suite/<name of the measure>`` and the ends of its interval, without what is not finite."""
    return interval_metrics({f"suite/{one.name}": one for one in suite.measures})


def interval_metrics(measured: Mapping[str, Measure | Interval]) -> dict[str, float]:
    """Each mean and the ends of its interval under the metric name of what it is called, without what is not finite."""
    found = {}
    for name, one in measured.items():
        metric = metric_name(name)
        found |= {metric: one.mean, f"{metric}_low": one.low, f"{metric}_high": one.high}
    return {name: value for name, value in found.items() if math.isfinite(value)}


def metric_name(name: str) -> str:
    """What is measured, as the tracking server can call it: the one way from a measure's name to a metric's.

    MLflow takes letters, digits and ``_ - . space : /``, in paths that say nothing in two ways, of at most 250 characters. So ``=`` becomes
    ``:``, a slash behind it and every run of other characters ``_``; a name that is too long ends in a digest of the whole.

    By hand: ``accuracy/source=/tmp/a (b).jsonl`` is ``accuracy/source:_tmp_a _b_.jsonl``.
    """
    path, sign, label = name.partition("=")
    *groups, last = path.split("/")
    whole = "/".join(metric_part(part) for part in (*groups, last + sign + label))
    return whole if len(whole) <= _LONGEST_METRIC else f"{whole[: _LONGEST_METRIC - 9]}_{record_id(name)[:8]}"


def metric_part(text: str) -> str:
    """A text as one part of a metric's name, such as a policy's: without a slash, and no empty part nor dots alone."""
    part = _NOT_IN_A_METRIC.sub("_", text.replace("=", ":"))
    return part if part.strip(".") else "_"


def write_suite(folder: Path, suite: Suite) -> None:
    """Write ``suite.json``."""
    (folder / FILE).write_text(json.dumps(asdict(suite), ensure_ascii=False), encoding="utf-8")


def read_suite(folder: Path) -> Suite:
    """The suite as ``write_suite`` wrote it."""
    content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return Suite(**(content | {"measures": [Measure(**measure) for measure in content["measures"]]}))
