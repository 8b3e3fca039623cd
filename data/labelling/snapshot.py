"""Stage entry: the labels of people as judgements, with the report on how far they agree."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from data.judgements import Candidates, Judgement
from data.labelling.judgements import judgements_of
from data.labelling.records import Given
from data.labelling.report import markdown_of, report_of
from data.records import canonical_json
from data.tables import read_table, write_table

_AGREEMENT = ("labels/raw", "labels/alpha_nominal", "labels/alpha_ordinal")


class Reporter(Protocol):
    """What the snapshot needs of the stage that runs it."""

    @property
    def out(self) -> Path:
        """Where the files go."""
        ...

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics."""
        ...


class ReportSettings(Protocol):
    """How the report is made."""

    @property
    def resamples(self) -> int:
        """Bootstrap resamples behind each interval."""
        ...


def write_labels(folder: Path, given: Iterable[Given]) -> None:
    """Write ``labels.jsonl``: the same labels give the same bytes, whenever and in which order they came."""
    rows = sorted(given, key=lambda row: (row.item, row.annotator))
    (folder / "labels.jsonl").write_text("".join(f"{canonical_json(row.to_row())}\n" for row in rows), encoding="utf-8")


def read_labels(folder: Path) -> list[Given]:
    """The labels that ``write_labels`` wrote."""
    rows = [json.loads(line) for line in (folder / "labels.jsonl").read_text(encoding="utf-8").split("\n") if line]
    return [Given(**row | {name: tuple(row[name]) for name in ("ranks", "order", "gold_ranks")}) for row in rows]


def snapshot(config: ReportSettings, *, candidates: Path, labels: Path, seed: int, run: Reporter) -> dict[str, Any]:
    """Write ``judgements.parquet``, ``agreement.json`` and ``agreement.md``.

    Raises:
        ValueError: there is no label.
    """
    given = read_labels(labels)
    judgements = judgements_of(read_table(candidates / "candidates.parquet", Candidates), given)
    if all(judgement.abstained for judgement in judgements):
        raise ValueError("nobody has labelled anything: label some items on the page of `posttrain label`, then run again")
    write_table(run.out / "judgements.parquet", judgements, Judgement)
    report = report_of(given, seed=seed, resamples=config.resamples)
    (run.out / "agreement.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    (run.out / "agreement.md").write_text(markdown_of(report), encoding="utf-8")
    metrics = {"labels/labels": report["labels"], "labels/items": report["items_labelled"], "labels/annotators": len(report["annotators"])}
    agreed = {name: report["agreement"][name.removeprefix("labels/")] for name in _AGREEMENT}
    run.report({**metrics, **{name: value["mean"] for name, value in agreed.items() if value is not None}}, 0)
    return {name.removeprefix("labels/"): value for name, value in metrics.items()}
