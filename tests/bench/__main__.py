"""python -m tests.bench: this project beside TRL and transformers, in turn, on this machine; JSON, tables and a plot.

Works are the comparisons of tests/bench/work.py, and ``scaling``: this project alone at several batch sizes and lengths.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Any

from models.base_model import prepare
from models.configs.base_model import BaseModelConfig
from models.run import Run
from tests.bench import scaling
from tests.bench.drive import Setting, compare
from tests.bench.report import Count, comparison_table, machine, peak_flops_per_s, versions
from tests.bench.shapes import SHAPES, random_model
from tests.bench.work import WORKS

VARIANTS = "of the peer: words among pure (bfloat16 weights), checkpointing, passes (4 a step, of PPO 8), vllm (generation by it, on a GPU)"


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    setting = Setting(options.laps, options.warmup, options.variant, options.peer_environment, options.ppo_path)
    own = machine()
    document: dict[str, Any] = {"date": date.today().isoformat(), "machine": own, "versions": versions(options.ppo_path)}
    document |= {"setting": asdict(setting), "shape": options.shape, "summaries": [], "settings": {}, "laps": {}}
    peak = peak_flops_per_s(own)
    tables = []
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _packaged(Path(folder))
        if options.shape:
            model = random_model(SHAPES[options.shape], model, Path(folder) / options.shape)
        for name in options.works:
            if name == "scaling":
                tables.append(_scaling(document, options, model, setting, peak))
            else:
                _comparison(document, name, model, setting)
            _write(document, options.out)  # what is measured is kept if a later work fails
    if document["summaries"]:
        tables.insert(0, comparison_table(document["summaries"], peak))
    print("\n\n".join(tables))
    if options.out:
        options.out.with_suffix(".md").write_text("\n\n".join(tables) + "\n")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; an unknown work ends it."""
    known = [*WORKS, "scaling"]
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("works", nargs="*", help=f"what to measure: {', '.join(known)} (default: all)")
    parser.add_argument("--laps", type=int, default=5, help="counted laps of each side")
    parser.add_argument("--warmup", type=int, default=1, help="laps before those")
    parser.add_argument("--variant", default="", help=VARIANTS)
    parser.add_argument(
        "--peer-environment",
        choices=["same", "plain"],
        default="plain",
        help="plain: the peer gets none of this project's environment variables (allocator, threads); same: both sides get them",
    )
    parser.add_argument("--ppo-path", default="", help="folder with TRL 1.12: pip install --no-deps --target FOLDER trl==1.12.0")
    parser.add_argument("--model", type=Path, help="folder of a model; default: the packaged SmolLM2-135M-Instruct")
    parser.add_argument("--shape", choices=sorted(SHAPES), help="random weights of this shape, with the tokenizer of the model; for GPUs")
    parser.add_argument("--scaling-tokens", type=int, default=8192, help="tokens an update where scaling varies the length")
    parser.add_argument("--scaling-cases", nargs="*", help=f"of scaling: {', '.join(scaling.cases(8192))} (default: all)")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON, and beside it the tables (.md) and the plot (.svg)")
    options = parser.parse_args(arguments)
    options.works = options.works or known
    unknown = sorted({*options.works} - {*known}) + sorted({*(options.scaling_cases or [])} - {*scaling.cases(8192)})
    if unknown:
        parser.error(f"no such work: {', '.join(unknown)}; there are {', '.join(known)}")
    if options.laps < 1:
        parser.error(f"--laps is {options.laps}: give 1 or more")
    return options


def _comparison(document: dict[str, Any], name: str, model: Path, setting: Setting) -> None:
    result = compare(name, model, setting)
    Count(name, model).fill(result, setting.warmup)
    document["summaries"].append(result.summary())
    document["settings"][name] = {"work": asdict(WORKS[name]), **result.settings}
    document["laps"][name] = {"ours": result.ours, "peer": result.peer}


def _scaling(document: dict[str, Any], options: argparse.Namespace, model: Path, setting: Setting, peak: float | None) -> str:
    measured = scaling.measure(model, setting, options.scaling_tokens, options.scaling_cases)
    rows = scaling.summarise(measured)
    document["scaling"] = {"rows": rows, **measured}
    if options.out:
        title = f"{document['machine']['gpu'] or document['machine']['processor']}, {document['date']}; dashed: 70 % of the best"
        scaling.plot(rows, title, options.out.with_suffix(".svg"))
    return scaling.scaling_table(rows, peak)


def _write(document: dict[str, Any], out: Path | None) -> None:
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(document, indent=1, default=str))


def _packaged(folder: Path) -> Path:
    run = Run(folder / "model", folder / "checkpoints", "bench")
    run.out.mkdir()
    run.checkpoints.mkdir()
    prepare(BaseModelConfig(chat_template="chatml"), seed=0, run=run)
    return run.out


if __name__ == "__main__":
    sys.exit(main())
