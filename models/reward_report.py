"""What was measured of a reward model, as a page of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from data.measures import Measure

_PLAIN = {"|": "\\|", "\n": " ", "`": "'", "<": "&lt;"}


def markdown_of(content: Mapping[str, Any]) -> str:
    """Tables of the measures, of the reliability diagram, of the margin by length and of best of n: those that there are."""
    parts = [
        f"{content['pairs']} held-out pairs; brackets are 95 % intervals.",
        _measures(content["measures"]),
        *_section("Reliability: how often the preferred side is the chosen one", _reliability(content["reliability"])),
        *_section("Margin by length", _by_length(content["margin_by_length"])),
        *_section("People", _people(content["people"])),
        *_section("Best of n: reward of the best of n answers by this reward", _curve(content["best_of_n"] or [])),
        "\n".join(f"* {_text(note)}" for note in content["notes"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(title: str, table: str) -> list[str]:
    return [f"## {title}", table] if table else []


def _measures(measures: Sequence[Measure]) -> str:
    rows = [(one.name, f"{one.mean:.3f} [{one.low:.3f}, {one.high:.3f}]", str(len(one.values) or "")) for one in measures]
    return _table(("measure", "value", "of"), rows)


def _reliability(bins: Sequence[Mapping[str, float]]) -> str:
    rows = [(f"{b['low']:.2f} to {b['high']:.2f}", f"{b['confidence']:.3f}", _interval(_accuracy(b)), b["pairs"]) for b in bins]
    return _table(("confidence", "mean confidence", "accuracy", "pairs"), rows)


def _by_length(bins: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (f"{b['tokens_low']:+.0f} to {b['tokens_high']:+.0f}", _interval(b["margin"]), f"{b['accuracy']:.2f}", b["pairs"]) for b in bins
    ]
    return _table(("tokens of chosen less rejected", "reward margin", "accuracy", "pairs"), rows)


def _people(sets: Sequence[Mapping[str, Any]]) -> str:
    return _table(("people", "pairs", "votes"), [(one["people"], one["pairs"], one["votes"]) for one in sets])


def _curve(points: Sequence[Mapping[str, Any]]) -> str:
    named = {"score": "reward", "true_score": "true score", "oracle_score": "true score, picked by the truth"}
    present = [name for name in named if points and name in points[0]]
    rows = [(point["n"], f"{point['kl_nats']:.3f}", *(_interval(point[name]) for name in present)) for point in points]
    return _table(("n", "KL, nats", *(named[name] for name in present)), rows)


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _accuracy(row: Mapping[str, float]) -> dict[str, float]:
    return {"mean": row["accuracy"], "low": row["accuracy_low"], "high": row["accuracy_high"]}


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; nothing without rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(_text(str(cell)) for cell in line)} |" for line in lines)


def _text(text: str) -> str:
    """A text in one cell: names of subsets come with the data."""
    for mark, instead in _PLAIN.items():
        text = text.replace(mark, instead)
    return text
