"""The two sides of tests/bench/curation.py: the same corpus through this project's blocks, or through datatrove's.

Both read JSON lines and write those that they keep. MinHash is 14 bands of 8 over word 5-grams without verification on both sides, as
FineWeb has it; decontamination looks for 13 words of an evaluation question.
"""

import importlib.util
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.curation import questions

BANDS, ROWS_PER_BAND, NGRAM_WORDS, EVALUATION_WORDS = 14, 8, 5, 13
MINHASH = ("data.blocks.minhash:MinHash", {"bands": BANDS, "rows_per_band": ROWS_PER_BAND, "verify": False})
DECONTAMINATE = ("data.blocks.decontaminate:Decontaminate", {"ngram_words": EVALUATION_WORDS, "shortest_words": EVALUATION_WORDS})
# Ours with its settings, and the datatrove blocks that do the same work. A block that is not there is left out on both sides.
CLEANING: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "data.blocks.heuristics:Gopher": (
        {"scope": "document", "min_words": 50, "judged_from_words": 0, "min_mean_word_characters": 3, "min_alphabetic": 0.8},
        ("filters.gopher_repetition_filter:GopherRepetitionFilter", "filters.gopher_quality_filter:GopherQualityFilter"),
    ),
}
_DESCRIBED_AT_ONCE = 1024


def cleaning() -> dict[str, tuple[Mapping[str, Any], tuple[str, ...]]]:
    """The cleaning blocks that are there."""
    return {place: each for place, each in CLEANING.items() if importlib.util.find_spec(place.partition(":")[0])}


def named(place: str) -> Any:
    """The class at module:class."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


# Ours


def ours(corpus: Path, folder: Path, workers: int, evaluated: Callable[[], list[str]]) -> None:
    """Through the executor where it is, else one block after another in this process."""
    steps = [*((place, settings) for place, (settings, _) in cleaning().items()), MINHASH, DECONTAMINATE]
    if importlib.util.find_spec("data.blocks.executor"):
        rows = _through_executor(steps, corpus, folder, workers, evaluated)
    elif workers == 1:
        rows = _through_loop(steps, corpus, folder, evaluated)
    else:
        raise ValueError(f"{workers} workers need data.blocks.executor, which is not there: give --workers 1")
    with (folder / "kept" / "all.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"id": row.example.metadata["id"], "text": row.text}) + "\n")


def read(corpus: Path) -> Iterator[Any]:
    """The corpus as rows: the first line of a document is the prompt, the rest the answer."""
    from data.blocks.base import Row
    from data.forms import Example
    from data.records import Message

    for path in sorted(corpus.glob("*.jsonl")):
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                document = json.loads(line)
                asked, _, answer = document["text"].partition("\n")
                yield Row(0, path.name, number, Example((Message("user", asked),), completion=answer, metadata={"id": document["id"]}))


class _Quiet:
    """What the executor needs of a stage's run."""

    def progress(self, done: int, total: int, **rates: float) -> None: ...

    def log(self, text: str) -> None:
        print(text, flush=True)


def _through_executor(
    steps: list[tuple[str, Mapping[str, Any]]], corpus: Path, folder: Path, workers: int, evaluated: Callable[[], list[str]]
) -> Iterator[Any]:
    module = importlib.import_module("data.blocks.executor")
    listed = [module.Step(place.partition(":")[2].lower(), place, settings) for place, settings in steps]
    scratch = folder / "scratch"
    scratch.mkdir()
    passed = module.run_blocks(
        read(corpus), listed, sources=["corpus"], evaluated=evaluated, scratch=scratch, seed=0, workers=workers, run=_Quiet()
    )
    return (numbered.row for numbered in passed.rows())


def _through_loop(
    steps: list[tuple[str, Mapping[str, Any]]], corpus: Path, folder: Path, evaluated: Callable[[], list[str]]
) -> Iterator[Any]:
    *filters, survey, last = [named(place)(named(f"{place}Settings")(**settings)) for place, settings in steps]
    last.against(evaluated(), folder)
    last.load(folder)
    path, count = folder / "values", 0
    with path.open("wb") as file:
        rows = _passed(filters, read(corpus))
        while batch := list(itertools.islice(rows, _DESCRIBED_AT_ONCE)):
            file.write(survey.describe(batch).tobytes())
            count += len(batch)
    decision = survey.decide(np.memmap(path, survey.values, "r", shape=(count,)), 0)
    left = (row for row, keep in zip(_passed(filters, read(corpus)), decision.keep, strict=True) if keep)
    return _passed([last], left)


def _passed(blocks: list[Any], rows: Iterable[Any]) -> Iterator[Any]:
    from data.blocks.base import Row

    for row in rows:
        for block in blocks:
            row = block(row)
            if not isinstance(row, Row):
                break
        else:
            yield row


# datatrove's


def datatrove(corpus: Path, folder: Path, workers: int, evaluated: Callable[[], list[str]]) -> None:
    """Clean and sign; find pairs; cluster; filter and decontaminate: the order of datatrove's own example of MinHash."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
    from datatrove.pipeline.dedup.minhash import (
        MinhashConfig,
        MinhashDedupBuckets,
        MinhashDedupCluster,
        MinhashDedupFilter,
        MinhashDedupSignature,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers.jsonl import JsonlWriter

    shards = len(list(corpus.glob("*.jsonl")))
    config = MinhashConfig(n_grams=NGRAM_WORDS, num_buckets=BANDS, hashes_per_bucket=ROWS_PER_BAND)
    checks = NGramsDecontFilter(str(folder / "index"), NGramsDecontConfig(n_grams=EVALUATION_WORDS))
    _write_index(checks, evaluated(), folder / "index")

    def run(name: str, tasks: int, *steps: Any) -> None:
        LocalPipelineExecutor(list(steps), tasks=tasks, workers=min(workers, tasks), logging_dir=str(folder / "logs" / name)).run()

    documents = str(corpus)
    if filters := [named(f"datatrove.pipeline.{place}")() for _, places in cleaning().values() for place in places]:
        documents = str(folder / "clean")
        writer = JsonlWriter(documents, output_filename="${rank}.jsonl", compression=None)
        run("clean", shards, JsonlReader(str(corpus)), *filters, writer)
    run("sign", shards, JsonlReader(documents), MinhashDedupSignature(str(folder / "signatures"), config))
    run("pairs", BANDS, MinhashDedupBuckets(str(folder / "signatures"), str(folder / "pairs"), config=config))
    run("cluster", 1, MinhashDedupCluster(str(folder / "pairs"), str(folder / "remove"), config))
    kept = JsonlWriter(str(folder / "kept"), output_filename="${rank}.jsonl", compression=None)
    run("filter", shards, JsonlReader(documents), MinhashDedupFilter(str(folder / "remove")), checks, kept)


def _write_index(checks: Any, texts: list[str], folder: Path) -> None:
    """What datatrove's indexer writes for documents; the indexer itself does not start without lighteval."""
    from datatrove.utils.text import ngrams, simplify_text

    folder.mkdir()
    words = (checks.tokenizer.word_tokenize(simplify_text(text, checks.config.norm_config)) for text in texts)
    hashes = {checks.hash_func(" ".join(gram)) for row in words for gram in ngrams(row, EVALUATION_WORDS)}
    np.array(sorted(hashes), checks.config.hash_config.np_descr).tofile(folder / "gsm8k.index.hashes")


def main(side: str, corpus: str, folder: str, workers: str, shared: str) -> None:
    """One lap; its seconds go to result.json."""
    (Path(folder) / "kept").mkdir()
    began = time.perf_counter()
    {"ours": ours, "datatrove": datatrove}[side](Path(corpus), Path(folder), int(workers), lambda: questions(Path(shared)))
    blocks = [*cleaning(), MINHASH[0], DECONTAMINATE[0]]
    (Path(folder) / "result.json").write_text(json.dumps({"seconds": time.perf_counter() - began, "blocks": blocks}))


if __name__ == "__main__":
    main(*sys.argv[1:])
