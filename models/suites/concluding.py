"""How a suite ends: its file, its metrics, a line for the log."""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from data.measures import Suite, metrics_of, write_suite
from models.run import Run

NOTHING: Mapping[str, float] = MappingProxyType({})


def conclude(suite: Suite, run: Run, counts: Mapping[str, float] = NOTHING) -> dict[str, Any]:
    """Write ``suite.json``, report every measure at step 0, and return the finite measures of all items for the artifact.

    ``counts``: metrics of how the suite was made, such as a judge's, which are reported beside the measures.
    """
    write_suite(run.out, suite)
    run.report({**metrics_of(suite), **counts}, 0)
    whole = [measure for measure in suite.measures if "/" not in measure.name]
    shown = ", ".join(f"{m.name} {m.mean:.4g} [{m.low:.4g}, {m.high:.4g}]" for m in whole)
    run.log(f"{suite.suite} ({len(suite.items)} items): {shown or f'{len(suite.measures)} measures'}")
    return {"items": len(suite.items)} | {measure.name: measure.mean for measure in whole if math.isfinite(measure.mean)}
