"""The table at the end of a run."""

from __future__ import annotations

import json
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.cli.policies import store
from flows.cli.terminal import plain
from models.comparison import COLUMNS, columns_of, marked
from tasks.registry import RunRecord

FILE = "comparison.json"


def comparison_of(record: RunRecord) -> Table | None:
    """The comparison that a run made, None if it made none."""
    for artifact in reversed(record.artifacts().values()):
        path = store().folder(artifact.digest) / FILE
        if path.is_file():
            return as_table(json.loads(path.read_text(encoding="utf-8")))
    return None


def as_table(content: dict[str, Any]) -> Table:
    """One row a policy; columns in which no policy has a value are left out. What the numbers mean is said below it."""
    rows = content["rows"]
    note = str(content.get("markdown", "")).strip().rpartition("\n\n")[2]
    table = Table(box=None, pad_edge=False, header_style="bold", caption=plain(note) or None, caption_justify="left")
    names = columns_of(rows)
    for name in names:
        table.add_column(COLUMNS[name], justify="left" if name == names[0] else "right")
    for row in rows:
        table.add_row(*(Text(plain(marked(row, name, content.get("gains")))) for name in names))
    return table
