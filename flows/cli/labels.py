"""`posttrain labels`: labelling tasks listed, reported on, and their labels from and to files of pairs or rankings."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from data.judgements import Candidates
from data.labelling.judgements import ExportForm, as_given, judgements_of, read_judgements, write_rows
from data.labelling.report import markdown_of, report_of
from data.labelling.store import LabelStore
from data.labelling.waiting import runs
from flows.cli.session import deliver, known_prefect
from flows.cli.terminal import out, write
from flows.labelling.announcing import announce
from flows.labelling.tasks import find, known


def list_labels() -> int:
    """Print every labelling task, and how far it is."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "labels", "wanted", "runs"):
        table.add_column(column, overflow="fold", justify="right" if column in ("labels", "wanted") else "left")
    for store in known():
        progress = store.progress()
        asked = ", ".join(f"{run.name} (waits)" if run.state != "done" else run.name for run in runs(store))
        table.add_row(store.name, str(progress.labels), str(progress.wanted), asked)
    out.print(table)
    return 0


def report_labels(name: str) -> int:
    """Print how far the annotators of a task agree, and how each of them works, as Markdown."""
    write(markdown_of(report_of(find(name).given())))
    return 0


def export_labels(name: str, path: Path, form: ExportForm) -> int:
    """Write the labels of a task to a file of JSON lines."""
    store = find(name)
    count = write_rows(path, judgements_of(_candidates(store), store.given()), form)
    out.print(f"{count} {form} in {path}", soft_wrap=True, markup=False)
    return 0


def import_labels(name: str, path: Path, annotator: str) -> int:
    """Take labels of a file into a task: those whose prompt and completions are an item of it."""
    store = find(name)
    given, unknown = as_given(read_judgements(path, annotator), store.items())
    new = store.take_in(given)
    with known_prefect() as is_known:
        if is_known and new:
            announce(store, new)
            deliver()
    known_before = len(given) - new
    out.print(f"{new} labels taken, {known_before} were there before, {unknown} fit no item of {store.name}", soft_wrap=True, markup=False)
    return 0


def _candidates(store: LabelStore) -> list[Candidates]:
    return [Candidates(item.id, store.name, item.prompt, item.completions, ()) for item in store.items() if not item.gold_ranks]
