"""The table at the end of a run: one row a policy, intervals in brackets, a column's unit in its head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.cli.policies import store
from flows.cli.terminal import plain
from tasks.registry import RunRecord

FILE = "comparison.json"


def comparison_of(record: RunRecord) -> Table | None:
    """The comparison that a run made, None if it made none."""
    for artifact in reversed(record.artifacts().values()):
        path = store().folder(artifact.digest) / FILE
        if path.is_file():
            return as_table(rows_in(path))
    return None


def rows_in(path: Path) -> list[dict[str, Any]]:
    """The rows of a comparison file: a list, or an object that holds it as `rows`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return content["rows"] if isinstance(content, dict) else content


def as_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Rows with the same keys as a table. A value is a text, a number, nothing, or an interval {mean, low, high}."""
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    for number, name in enumerate(columns):
        table.add_column(name.replace("_", " "), justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*(Text(cell(row.get(name))) for name in columns))
    return table


def cell(value: Any) -> str:
    """One value for people: 0.4321 -> `0.432`, an interval -> `0.43 [0.40, 0.46]`, nothing -> a dash."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    if isinstance(value, bool | int):
        return str(value)
    return f"{value:.3f}" if isinstance(value, float) else plain(str(value))
