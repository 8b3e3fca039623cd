"""python -m tests.bench: this project beside TRL and transformers, in turn, on this machine; JSON and a table."""

import argparse
import json
import platform
import tempfile
from datetime import date
from pathlib import Path

from models.base_model import prepare
from models.configs.base_model import BaseModelConfig
from models.run import Run
from tests.bench.drive import compare
from tests.bench.work import WORKS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("works", nargs="*", default=list(WORKS), help=f"what to compare: {', '.join(WORKS)} (default: all)")
    parser.add_argument("--laps", type=int, default=5, help="counted laps of each side")
    parser.add_argument("--warmup", type=int, default=1, help="laps before those")
    parser.add_argument("--variant", default="", help="of the peer: words among pure (bfloat16 weights), checkpointing, passes (4 a step)")
    parser.add_argument("--ppo-path", default="", help="folder with TRL 1.12: pip install --no-deps --target FOLDER trl==1.12.0")
    parser.add_argument("--model", type=Path, help="folder of a model; default: the packaged SmolLM2-135M-Instruct")
    parser.add_argument("--out", type=Path, help="write the results here, as JSON")
    options = parser.parse_args()
    unknown = sorted(set(options.works) - set(WORKS))
    if unknown:
        parser.error(f"no such work: {', '.join(unknown)}; there are {', '.join(WORKS)}")
    with tempfile.TemporaryDirectory() as folder:
        model = options.model or _packaged(Path(folder))
        results = [compare(name, model, options.laps, options.warmup, options.variant, options.ppo_path) for name in options.works]
    summaries = [result.summary() for result in results]
    if options.out:
        document = {"date": date.today().isoformat(), "machine": machine(), "variant": options.variant, "summaries": summaries}
        document["laps"] = {r.name: {"ours": r.ours, "peer": r.peer} for r in results}
        options.out.write_text(json.dumps(document, indent=1))
    print("| work | ours | peer | ratio (lowest to highest lap) | peak memory, GiB | memory ratio |\n|---|---|---|---|---|---|")
    for s in summaries:
        rates = f"{s['ours_per_s']:.4g} {s['unit']}/s | {s['peer_per_s']:.4g} {s['unit']}/s"
        spread = f"{s['ratio']:.2f} ({s['ratio_low']:.2f} to {s['ratio_high']:.2f})"
        print(f"| {s['work']} | {rates} | {spread} | {s['ours_peak_gib']:.2f} / {s['peer_peak_gib']:.2f} | {s['memory_ratio']:.2f} |")


def _packaged(folder: Path) -> Path:
    run = Run(folder / "model", folder / "checkpoints", "bench")
    run.out.mkdir()
    run.checkpoints.mkdir()
    prepare(BaseModelConfig(chat_template="chatml"), seed=0, run=run)
    return run.out


def machine() -> dict[str, str | int]:
    """What the numbers were measured on."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {"processor": names[0] if names else platform.processor(), "cores": len(names), "python": platform.python_version()}


if __name__ == "__main__":
    main()
