"""The report on a labelling task: how far people agree, and how each of them worked."""

import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from data.intervals import Interval, wilson
from data.labelling import agreement
from data.labelling.records import Given


def report_of(given: Sequence[Given], *, seed: int = 0, resamples: int = 1000) -> dict[str, Any]:
    """Counts, agreement between annotators and the quality of each, with 95 % intervals; plain values, for JSON.

    Agreement is over the items asked, not those with a known answer. A number that has no value is None.
    """
    asked = [row for row in given if not row.gold_ranks]
    labels = [row for row in asked if row.ranks]
    annotators = sorted({row.annotator for row in given})
    by_item: dict[str, int] = defaultdict(int)
    for row in labels:
        by_item[row.item] += 1
    return {
        "items_labelled": len(by_item),
        "items_of_several": sum(count > 1 for count in by_item.values()),
        "labels": len(labels),
        "skips": len(asked) - len(labels),
        "gold_labels": sum(bool(row.gold_ranks and row.ranks) for row in given),
        "agreement": agreement_of(labels, seed=seed, resamples=resamples),
        "pairs_of_annotators": pairs_of_annotators(labels, seed=seed, resamples=resamples),
        "annotators": {name: quality_of([row for row in given if row.annotator == name]) for name in annotators},
    }


def agreement_of(labels: Sequence[Given], *, seed: int, resamples: int) -> dict[str, Any]:
    """Raw agreement and Krippendorff's alpha over all annotators."""
    won = [agreement.coincidences(units, agreement.SIGNS) for units in agreement.signs(labels).values()]
    graded = [agreement.coincidences(units, agreement.GRADES) for units in agreement.grades(labels).values()]
    return {
        "raw": _plain(agreement.over_items(won, agreement.observed, seed=seed, n=resamples)),
        "alpha_nominal": _plain(agreement.over_items(won, lambda table: agreement.alpha(table, "nominal"), seed=seed, n=resamples)),
        "alpha_ordinal": _plain(agreement.over_items(graded, lambda table: agreement.alpha(table, "ordinal"), seed=seed, n=resamples)),
    }


def pairs_of_annotators(labels: Sequence[Given], *, seed: int, resamples: int) -> list[dict[str, Any]]:
    """Raw agreement and Cohen's kappa of every two annotators who labelled the same items."""
    units = agreement.signs(labels)
    rows = []
    for first, second in itertools.combinations(sorted({row.annotator for row in labels}), 2):
        tables = [agreement.confusion(pairs, first, second) for pairs in units.values()]
        shared = sum(bool(table.sum()) for table in tables)
        if shared:
            raw = _plain(agreement.over_items(tables, agreement.observed, seed=seed, n=resamples))
            kappa = _plain(agreement.over_items(tables, agreement.kappa, seed=seed, n=resamples))
            rows.append({"first": first, "second": second, "items": shared, "raw": raw, "kappa": kappa})
    return rows


def quality_of(rows: Sequence[Given]) -> dict[str, Any]:
    """How one annotator worked.

    gold_accuracy: share of the comparisons that a known answer decides on which they say the same.
    tie_share: of their comparisons. shown_first_share: of those they decided, how often what was shown before won; 0.5 without bias.
    """
    labels = [row for row in rows if row.ranks]
    right = [ours == gold for row in labels for ours, gold in _against_gold(row)]
    won = [sign for row in labels for sign in _as_shown(row)]
    decided = [sign for sign in won if sign]
    return {
        "labels": sum(not row.gold_ranks for row in labels),
        "skips": len(rows) - len(labels),
        "gold_accuracy": _share(sum(right), len(right)),
        "median_s": statistics.median(row.seconds for row in labels) if labels else None,
        "tie_share": _share(len(won) - len(decided), len(won)),
        "shown_first_share": _share(sum(sign > 0 for sign in decided), len(decided)),
    }


def _against_gold(row: Given) -> list[tuple[int, int]]:
    """(sign said, sign known) of the comparisons that the known answer decides."""
    if not row.gold_ranks:
        return []
    pairs = itertools.combinations(range(len(row.ranks)), 2)
    signs = [(_sign(row.ranks, i, j), _sign(row.gold_ranks, i, j)) for i, j in pairs]
    return [both for both in signs if both[1]]


def _as_shown(row: Given) -> list[int]:
    """Of each comparison: 1 where what was shown before won, -1 where the other did, 0 for a tie."""
    return [_sign(row.ranks, i, j) for i, j in itertools.combinations(row.order, 2)]


def _sign(ranks: Sequence[int], i: int, j: int) -> int:
    return int(np.sign(ranks[j] - ranks[i]))


def _share(k: int, n: int) -> dict[str, Any] | None:
    return {**(_plain(wilson(k, n)) or {}), "n": n} if n else None


def _plain(interval: Interval | None) -> dict[str, Any] | None:
    if interval is None:
        return None
    ends = {"low": interval.low, "high": interval.high}
    return {"mean": interval.mean, **{name: None if math.isnan(end) else end for name, end in ends.items()}}


# For readers


def markdown_of(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    agreed = report["agreement"]
    lines = [
        "# Labels given by people",
        "",
        f"{report['labels']} labels of {report['items_labelled']} items, {report['items_of_several']} of them by several people; "
        f"{report['skips']} skipped; {report['gold_labels']} answers to questions with a known answer. "
        "In brackets 95 % intervals: bootstrap over items for agreement, Wilson's for shares.",
        "",
        *_table(
            ("agreement of all", "value"),
            [
                ("same winner (raw)", _cell(agreed["raw"])),
                ("Krippendorff's alpha, nominal (who won)", _cell(agreed["alpha_nominal"])),
                ("Krippendorff's alpha, ordinal (how clearly)", _cell(agreed["alpha_ordinal"])),
            ],
        ),
    ]
    if report["pairs_of_annotators"]:
        rows = [
            (_name(row["first"]), _name(row["second"]), str(row["items"]), _cell(row["raw"]), _cell(row["kappa"]))
            for row in report["pairs_of_annotators"]
        ]
        lines += ["", *_table(("annotator", "and", "items", "raw", "Cohen's kappa"), rows)]
    head = ("annotator", "labels", "skipped", "right on known answers", "median s", "ties", "shown first wins")
    lines += ["", *_table(head, [_quality_row(name, row) for name, row in report["annotators"].items()])]
    return "\n".join(lines) + "\n"


def _quality_row(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    median = "" if row["median_s"] is None else f"{row['median_s']:.1f}"
    shares = [_cell(row[part]) for part in ("gold_accuracy", "tie_share", "shown_first_share")]
    return _name(name), str(row["labels"]), str(row["skips"]), shares[0], median, *shares[1:]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    ends = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value['mean']:.3f}{ends}" + (f" of {value['n']}" if "n" in value else "")


def _name(text: str) -> str:
    """A name that cannot end its cell or begin markup."""
    return "".join(character if character.isalnum() or character in " -_." else "_" for character in text)
