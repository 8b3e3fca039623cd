"""How a suite ends: its file, its metrics, a line for the log."""

import math
from typing import Any

from data.measures import Suite, metrics_of, write_suite
from models.run import Run


def conclude(suite: Suite, run: Run) -> dict[str, Any]:
    """Write ``suite.json``, report every measure at step 0, and return the finite measures of all items for the artifact."""
    write_suite(run.out, suite)
    run.report(metrics_of(suite), 0)
    whole = [measure for measure in suite.measures if "/" not in measure.name]
    shown = ", ".join(f"{m.name} {m.mean:.4g} [{m.low:.4g}, {m.high:.4g}]" for m in whole)
    run.log(f"{suite.suite} ({len(suite.items)} items): {shown}")
    return {"items": len(suite.items)} | {measure.name: measure.mean for measure in whole if math.isfinite(measure.mean)}
