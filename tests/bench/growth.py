"""python -m tests.bench.growth: how costs grow, and a post-training run of a 70B model on 64 GPUs, on paper.

    measure    three sizes of every law, and what the laws fitted to them say of a fourth; nothing is known of the fourth yet
    check      the fourth
    write      the tables of docs/scale.md from what was measured, and the paper run

What is measured is kept in tests/bench/growth.json, between the two as well, so that a prediction can be committed before it is tried.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.home import ENVIRONMENT
from tests.bench.growth_laws import ALLOWED_ERROR, LAWS, Law, fit, predict
from tests.bench.growth_tables import blocks, size
from tests.bench.report import short, table

ROOT = Path(__file__).resolve().parents[2]
MEASURED = Path(__file__).with_name("growth.json")
PAGE = ROOT / "docs" / "scale.md"
LAPS = 5


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.growth", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("action", choices=["measure", "check", "write"])
    parser.add_argument("works", nargs="*", help=f"of measure and check: {', '.join(works())} (default: all)")
    parser.add_argument("--laps", type=int, default=LAPS, help="laps that count")
    options = parser.parse_args(arguments)
    if options.action == "write":
        PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8"), read()), encoding="utf-8")
        return
    unknown = sorted({*options.works} - {*works()})
    if unknown:
        parser.error(f"no such work: {', '.join(unknown)}; there are {', '.join(works())}")
    for work in options.works or works():
        {"measure": measure, "check": check}[options.action](work, options.laps)


def works() -> list[str]:
    """What is measured, in the order of the laws."""
    return list(dict.fromkeys(law.work for law in LAWS))


def read() -> dict[str, Any]:
    """What was measured."""
    return json.loads(MEASURED.read_text(encoding="utf-8")) if MEASURED.exists() else {"laws": {}, "beside": {}}


def measure(work: str, laps: int) -> None:
    """Three sizes, the laws through them, and their predictions; what was known of a fourth is forgotten."""
    laws = [law for law in LAWS if law.work == work]
    values = side(work, list(laws[0].sizes), laps)
    document = read()
    for law in laws:
        medians = [statistics.median(values[str(size)][law.quantity]) for size in law.sizes]
        coefficients = fit(law, medians)
        document["laws"][law.name] = {
            **{"measured_at": now(), "sizes": list(law.sizes), "medians": medians},
            "laps": [values[str(size)][law.quantity] for size in law.sizes],
            **{"coefficients": coefficients, "fourth": law.fourth, "predicted": predict(law, coefficients, law.fourth)},
        }
    document["beside"][work] = values
    write(document)


def check(work: str, laps: int) -> None:
    """The fourth size, against what was predicted.

    Raises:
        ValueError: nothing was predicted.
    """
    laws, document = [law for law in LAWS if law.work == work], read()
    if any(law.name not in document["laws"] for law in laws):
        raise ValueError(f"{work} has no prediction in {MEASURED}: measure its three sizes first")
    values = side(work, [laws[0].fourth], laps)[str(laws[0].fourth)]
    for law in laws:
        known, found = document["laws"][law.name], statistics.median(values[law.quantity])
        known |= {"checked_at": now(), "found": found, "found_laps": values[law.quantity], "error": known["predicted"] / found - 1}
        print(f"{law.name}: predicted {known['predicted']:.6g}, found {found:.6g} {law.unit}, {known['error']:+.1%}", file=sys.stderr)
    document["beside"][work] |= {str(laws[0].fourth): values}
    write(document)


def side(work: str, sizes: list[Any], laps: int) -> dict[str, dict[str, list[float]]]:
    """The laps of some sizes, on one thread of a process of its own, in an environment as a stage has it."""
    quiet = {"OMP_NUM_THREADS": "1", "POSTTRAIN_THREADS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with tempfile.TemporaryDirectory() as folder:  # where the side leaves what it makes
        environment = {**ENVIRONMENT, **os.environ, **quiet, "POSTTRAIN_HOME": folder, "TMPDIR": folder}
        command = [sys.executable, "-m", "tests.bench.growth_side", work, json.dumps(sizes), str(laps)]
        answer = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(answer.stdout.splitlines()[-1])


def write(document: dict[str, Any]) -> None:
    """Keep what was measured, with what it was measured on."""
    names = [line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    document |= {"machine": f"{names[0]}, {len(os.sched_getaffinity(0))} cores, one thread", "date": now()[:10]}
    MEASURED.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def now() -> str:
    """In UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


# The page


def with_tables(page: str, document: dict[str, Any]) -> str:
    """The page with the text between each `<!-- NAME -->` and `<!-- end -->` made anew."""
    made = {"laws": laws_table(document), **blocks(document)}

    def block(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n\n{made[match[1]]}\n\n<!-- end -->"

    return re.sub(r"<!-- (\w+) -->.*?<!-- end -->", block, page, flags=re.DOTALL)


def laws_table(document: dict[str, Any]) -> str:
    """One row a law: the sizes, the prediction, what came, the error."""
    rows = [_law_row(law, document["laws"][law.name]) for law in LAWS if "found" in document["laws"].get(law.name, {})]
    return table(["what", "law", "three sizes", "measured", "fourth", "predicted", "found (lowest to highest)", "error"], rows)


def _law_row(law: Law, known: dict[str, Any]) -> list[str]:
    error, laps = f"{round(known['error'], 3) or 0.0:+.1%}", known["found_laps"]
    return [
        f"{law.work.replace('_', ' ')}, {law.quantity.removesuffix('_s').replace('_', ' ')}",
        law.said,
        ", ".join(f"{size}" for size in known["sizes"]),
        ", ".join(amount(value, law.unit) for value in known["medians"]),
        f"{known['fourth']}",
        amount(known["predicted"], law.unit),
        f"{amount(known['found'], law.unit)} ({amount(min(laps), law.unit)} to {amount(max(laps), law.unit)})",
        error if abs(known["error"]) <= ALLOWED_ERROR else f"**{error}**",
    ]


def amount(value: float, unit: str) -> str:
    """With its unit, short."""
    if unit == "bytes":
        return size(value)
    return f"{value * 1000:.3g} ms" if unit == "s" and value < 0.1 else f"{short(value)} {unit}"


if __name__ == "__main__":
    main()
