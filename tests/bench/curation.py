"""python -m tests.bench.curation: MinHash and decontamination (and cleaning, where its blocks are) beside datatrove's own blocks.

Short documents are made of sentences of the shared data sets, with planted exact copies, near-copies and evaluation questions. Each side is
a process of its own, in turn, A B A B; its time is from the first document read to the last one written. Its processor time (with the start
of Python) and its memory, the largest sum of resident sets, are those of its process tree, looked at every 20 ms.

datatrove is no dependency: pip install --target FOLDER "datatrove==0.10.1" "spacy>=3.8,<3.9" "xxhash<4" orjson tldextract ftfy fasteners
"""

import argparse
import gzip
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
SHARDS = 8
SHARES = {"copy": 0.05, "near": 0.10, "evaluation": 0.005}  # of the documents, planted
_REMEMBERED = 1000  # documents that can be copied
_EVALUATION_FILES = ("test.jsonl", "example_model_solutions.jsonl")
_TIMES = ("seconds", "cpu_s")
_SENTENCE = re.compile(r"(?<=[.!?])\s+")


def sentences(shared: Path) -> list[str]:
    """Sentences of 5 to 40 words of the shared sets, each once, in order; none of gsm8k's test questions."""
    found: dict[str, None] = {}
    for path in sorted(path for pattern in ("*.json", "*.jsonl", "*.gz", "*.csv", "wiki*.txt") for path in shared.glob(f"*/{pattern}")):
        if path.name in _EVALUATION_FILES:
            continue
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        for text in _texts(path, content.decode("utf-8")):
            found.update((s, None) for s in _SENTENCE.split(" ".join(text.split())) if 5 <= len(s.split()) <= 40)
    return list(found)


def _texts(path: Path, content: str) -> Iterator[str]:
    if path.suffix == ".json":
        yield from _strings(json.loads(content))
    elif path.suffix in (".jsonl", ".gz"):
        yield from (text for line in content.splitlines() for text in _strings(json.loads(line)))
    else:
        yield from content.splitlines()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _strings(each)


def questions(shared: Path) -> list[str]:
    """The evaluation texts: gsm8k's test questions."""
    return [json.loads(line)["question"] for line in (shared / "gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines()]


def documents(shared: Path, count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """(kind, text) of each document: ``new`` ones are 4 to 8 sentences; near-copies have one word in forty replaced."""
    generator = random.Random(seed)
    pool, evaluation = sentences(shared), questions(shared)
    recent: list[str] = []
    for _ in range(count):
        kind = generator.choices(["new", *SHARES], [1 - sum(SHARES.values()), *SHARES.values()])[0] if recent else "new"
        if kind in ("copy", "near"):
            text = generator.choice(recent)
            if kind == "near":
                text = " ".join("changed" if generator.random() < 1 / 40 else word for word in text.split(" "))
        else:
            parts = generator.choices(pool, k=generator.randint(4, 8))
            if kind == "evaluation":
                parts[len(parts) // 2] = generator.choice(evaluation)
            text = "\n".join([parts[0], " ".join(parts[1:])])
            if len(recent) < _REMEMBERED:
                recent.append(text)
            else:
                recent[generator.randrange(_REMEMBERED)] = text
        yield kind, text


def write_corpus(shared: Path, count: int, folder: Path) -> Counter[str]:
    """JSON lines of id (place and kind) and text, in shards of equal size; returns how many there are of each kind."""
    folder.mkdir(parents=True)
    kinds: Counter[str] = Counter()
    per_shard = -(-count // SHARDS)
    stream = documents(shared, count)
    for shard in range(SHARDS):
        with (folder / f"{shard:05d}.jsonl").open("w", encoding="utf-8") as file:
            for number in range(min(per_shard, count - shard * per_shard)):
                kind, text = next(stream)
                kinds[kind] += 1
                file.write(json.dumps({"id": f"{shard}-{number}-{kind}", "text": text}) + "\n")
    return kinds


def measure(side: str, corpus: Path, workers: int, shared: Path, peer_path: str) -> dict[str, Any]:
    """One lap of a side: what it says of itself, its peak memory in bytes, and the documents it kept by kind."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [peer_path if side == "datatrove" else "", str(ROOT)]))}
    environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tests.bench.curation_sides", side, str(corpus), folder, str(workers), str(shared)]
        with (Path(folder) / "log.txt").open("wb") as log:
            process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        peak, cpu_s = 0, {}
        while process.poll() is None:
            peak = max(peak, look(process.pid, cpu_s))
            time.sleep(0.02)
        if process.returncode:
            raise RuntimeError(f"{side} ended with {process.returncode}; its log ends:\n{(Path(folder) / 'log.txt').read_text()[-3000:]}")
        said = json.loads((Path(folder) / "result.json").read_text())
        kept: Counter[str] = Counter()
        for path in sorted((Path(folder) / "kept").glob("*.jsonl")):
            with path.open(encoding="utf-8") as lines:
                kept.update(json.loads(line)["id"].rpartition("-")[2] for line in lines)
    return {**said, "cpu_s": sum(cpu_s.values()), "peak_bytes": peak, "kept": dict(kept)}


def look(pid: int, cpu_s: dict[int, float]) -> int:
    """Resident sets of a process and all below it, summed; notes the processor time of each so far."""
    total = 0
    try:
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            try:
                total += process.memory_info().rss
                cpu_s[process.pid] = sum(process.cpu_times()[:2])
            except psutil.NoSuchProcess:
                continue
    except psutil.NoSuchProcess:
        return total
    return total


def exponent(seconds: dict[int, float]) -> float:
    """Slope of log time over log size from the smallest to the largest. By hand: 1 s for 10, 100 s for 1000 is 1: linear."""
    small, large = min(seconds), max(seconds)
    return math.log(seconds[large] / seconds[small]) / math.log(large / small)


def table(laps: dict[str, dict[int, list[dict[str, Any]]]], planted: dict[int, Counter[str]]) -> str:
    """Medians of the laps in Markdown."""
    columns = "documents | side | documents/s | seconds (low to high) | documents/processor second | peak MiB"
    lines = [f"| {columns} | removed: copies | near-copies | evaluation | others |", "|" + "---|" * 10]
    for size, kinds in planted.items():
        for side, by_size in laps.items():
            seconds = [lap["seconds"] for lap in by_size[size]]
            kept = by_size[size][-1]["kept"]
            removed = [f"{1 - kept.get(kind, 0) / kinds[kind]:.2%}" for kind in (*SHARES, "new")]
            middle = statistics.median(seconds)
            peak = max(lap["peak_bytes"] for lap in by_size[size]) / 2**20
            times = f"{middle:.1f} ({min(seconds):.1f} to {max(seconds):.1f})"
            per_cpu = size / statistics.median(lap["cpu_s"] for lap in by_size[size])
            lines.append(f"| {size:,} | {side} | {size / middle:,.0f} | {times} | {per_cpu:,.0f} | {peak:,.0f} | {' | '.join(removed)} |")
    if len(planted) > 1:
        for side, by_size in laps.items():
            growth = [exponent({size: statistics.median(lap[unit] for lap in each) for size, each in by_size.items()}) for unit in _TIMES]
            sizes = f"from {min(planted):,} to {max(planted):,} documents"
            lines.append(f"\n{side}: time grows as size^{growth[0]:.2f}, processor time as size^{growth[1]:.2f} {sizes}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the corpora, run the laps, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.curation")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000], help="documents")
    parser.add_argument("--laps", type=int, default=2, help="laps of each side, in turn")
    parser.add_argument("--workers", type=int, default=2, help="processes of each side")
    parser.add_argument("--sides", nargs="+", choices=["ours", "datatrove"], default=["ours", "datatrove"])
    parser.add_argument("--peer-path", default="", help="folder that datatrove is installed in")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared/data", help="folder of the real data sets")
    parser.add_argument("--out", type=Path, help="write every lap here, as JSON")
    options = parser.parse_args(arguments)
    laps: dict[str, dict[int, list[dict[str, Any]]]] = {side: {size: [] for size in options.sizes} for side in options.sides}
    planted: dict[int, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            corpus = Path(folder) / str(size)
            planted[size] = write_corpus(options.shared, size, corpus)
            for lap in range(options.laps):
                for side in options.sides:
                    measured = measure(side, corpus, options.workers, options.shared, options.peer_path)
                    laps[side][size].append(measured)
                    print(f"{size} {side} lap {lap + 1}: {measured}", file=sys.stderr, flush=True)
            if options.out:
                document = {"date": date.today().isoformat(), "workers": options.workers, "planted": planted, "laps": laps}
                options.out.write_text(json.dumps(document, indent=1))
    print(table(laps, planted))


if __name__ == "__main__":
    main()
