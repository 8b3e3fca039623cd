"""Runs a list of blocks over a stream of rows: in bounded memory, in parallel processes, with the same result for any number of them.

Rows are cut into shards by their number and size alone. Blocks up to the next survey are one pass over the shards; a survey ends the pass:
the values of all rows go to a file, it decides over them, and the next pass begins by dropping what it decided against.

A block is constructed as ``Block(settings)``, here and in every worker process. Beside what ``data.blocks.base`` asks of it, it may have
(each called only where it is there; ``scratch`` is a folder of the block's own):

    prepare(seed: int, scratch: Path)                      once, here, before the pass that it is in: train what it needs
    against(texts: Iterable[str], scratch: Path)           once, here, after that: all texts that are evaluated on, read once, in any order
    load(scratch: Path)                                    in every process, before its first row: what those two left in scratch
    label(row: Row) -> str                                 what the report counts rows by, such as their language; called right before
                                                           the block is called with the row
    Settings.paths() -> list[Path]                         local files that the settings name; their bytes enter the stage's key
"""

import itertools
import json
import random
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from data.blocks.base import Decision, Row, Survey
from data.blocks.configs import BlockConfig
from data.blocks.offers import Offers
from data.blocks.registry import load, place_of
from data.blocks.rows import Numbered, encode, read
from data.blocks.tally import BlockTally
from data.blocks.worker import Task
from data.blocks.workers import Workers, available_cores

_SHARD_ROWS = 2_048
_SHARD_BYTES = 4 << 20


class Progress(Protocol):
    """What the executor needs of the stage that runs it."""

    def progress(self, done: int, total: int, **rates: float) -> None:
        """Tell how far it is."""
        ...

    def log(self, text: str) -> None:
        """Tell a line."""
        ...


@dataclass(frozen=True)
class Step:
    """One block to run: what to call it, where its class is, its settings."""

    label: str
    place: str
    settings: Mapping[str, Any]


def steps_of(blocks: Sequence[BlockConfig]) -> list[Step]:
    """The blocks of a recipe; of a kind that is there twice the label tells which."""
    kinds = [block.kind for block in blocks]
    labels = [kind if kinds.count(kind) == 1 else f"{kind}-{kinds[: number + 1].count(kind)}" for number, kind in enumerate(kinds)]
    return [Step(label, place_of(block.kind), block.settings) for label, block in zip(labels, blocks, strict=True)]


def judges_evaluation(step: Step) -> bool:
    """Whether the block compares with what is evaluated on, and so has to come after the held-out rows were chosen."""
    return hasattr(load(step.place, step.settings)[0], "against")


@dataclass
class Passed:
    """What is left of the rows, on disk, and what became of the others. ``rejected``: a JSON line for each."""

    tallies: list[BlockTally]
    rejected: Path
    n_rows: int
    shards: list[Path]

    def rows(self) -> Iterator[Numbered]:
        """The rows that are left, in order; each shard is removed when it was read."""
        for path in self.shards:
            yield from read(path)
            path.unlink()


def run_blocks(
    rows: Iterable[Row],
    steps: Sequence[Step],
    *,
    sources: Sequence[str],
    evaluated: Callable[[], Iterable[str]],
    scratch: Path,
    seed: int,
    workers: int,
    run: Progress,
    offers: Offers | None = None,
) -> Passed:
    """Pass rows through blocks.

    Args:
        rows: read once.
        steps: the blocks, in order.
        sources: name of each source by its number, for the list of rejected rows.
        evaluated: the texts that are evaluated on, for blocks that ask.
        scratch: an empty folder for everything between.
        seed: of surveys, training and samples.
        workers: processes; 0: one for each core that this process may use.
        offers: to processes on other hosts that see ``scratch``.

    Raises:
        ValueError: a setting is wrong, or a file that settings name.
        ChildProcessError: a worker died.
    """
    executor = _Executor(steps, sources, scratch, seed, run)
    with Workers(workers or available_cores(), executor.plan, [step.label for step in steps], offers) as pool:
        return executor.run(rows, evaluated, pool)


@dataclass(frozen=True)
class _Shard:
    """A file of rows."""

    path: Path
    n_rows: int


@dataclass(frozen=True)
class _Pass:
    """Drop what the survey ``dropper`` decided against, run the blocks ``first`` to ``last`` (excluded), describe rows to ``survey``.

    Blocks are named by number, -1 where there is none.
    """

    number: int
    first: int
    last: int
    survey: int
    dropper: int
    decision: Decision

    def file(self, scratch: Path, kind: str, shard: int) -> Path:
        return scratch / f"pass{self.number}-{kind}-{shard}"


_NO_DECISION = Decision(np.empty(0, bool), "", {})


class _Executor:
    def __init__(self, steps: Sequence[Step], sources: Sequence[str], scratch: Path, seed: int, run: Progress) -> None:
        self.steps, self.scratch, self.seed, self.reporter = steps, scratch, seed, run
        self.folders = [scratch / f"block{number}" for number in range(len(steps))]
        self.blocks: list[Any] = [block(settings) for block, settings in (load(step.place, step.settings) for step in steps)]
        self.tallies = [BlockTally() for _ in steps]
        self.rejected = scratch / "rejected.jsonl"
        self.rejected.touch()
        self.plan = scratch / "plan.json"
        listed = [{**asdict(step), "folder": str(folder)} for step, folder in zip(steps, self.folders, strict=True)]
        self.plan.write_text(json.dumps({"seed": seed, "sources": list(sources), "steps": listed}), encoding="utf-8")

    def run(self, rows: Iterable[Row], evaluated: Callable[[], Iterable[str]], pool: Workers) -> Passed:
        """All passes: each goes up to the next survey, and the last survey is followed by one that only drops."""
        shards: Iterable[_Shard] = self._read(rows)
        first, dropper, decision = 0, -1, _NO_DECISION
        for number in itertools.count():
            if first == len(self.steps) and dropper < 0:
                break
            surveys = [step for step in range(first, len(self.steps)) if isinstance(self.blocks[step], Survey)]
            survey, last = (surveys[0], surveys[0]) if surveys else (-1, len(self.steps))
            this = _Pass(number, first, last, survey, dropper, decision)
            self._prepare(range(first, last + bool(surveys)), evaluated)
            shards = done = self._pass(this, shards, pool)
            decision = self._decide(this, done) if surveys else _NO_DECISION
            first, dropper = last + bool(surveys), survey
        left = list(shards)
        return Passed(self.tallies, self.rejected, sum(shard.n_rows for shard in left), [shard.path for shard in left])

    def _read(self, rows: Iterable[Row]) -> Iterator[_Shard]:
        lines = (encode(Numbered(number, False, row)) for number, row in enumerate(rows))
        for shard in itertools.count():
            path = self.scratch / f"read-{shard}"
            n_rows = size = 0
            with path.open("wb") as file:
                for line in lines:
                    size += file.write(line)
                    n_rows += 1
                    if n_rows == _SHARD_ROWS or size >= _SHARD_BYTES:
                        break
            if not n_rows:
                path.unlink()
                return
            yield _Shard(path, n_rows)

    def _prepare(self, numbers: Iterable[int], evaluated: Callable[[], Iterable[str]]) -> None:
        for number in numbers:
            block, folder = self.blocks[number], self.folders[number]
            folder.mkdir()
            if hasattr(block, "prepare"):
                self.reporter.log(f"block {self.steps[number].label} is prepared")
                block.prepare(self._seed_of(number), folder)
            if hasattr(block, "against"):
                block.against(evaluated(), folder)
            if hasattr(block, "load") and hasattr(block, "decide"):  # which it does here
                block.load(folder)

    def _seed_of(self, number: int) -> int:
        return random.Random(f"{self.seed}:{number}:{self.steps[number].label}").getrandbits(32)

    def _pass(self, this: _Pass, shards: Iterable[_Shard], pool: Workers) -> list[_Shard]:
        """One pass over all shards; returns those of the rows that are left."""
        total = sum(shard.n_rows for shard in shards) if isinstance(shards, list) else 0
        taken: list[_Shard] = []
        left: dict[int, int] = {}

        def done(result: Path) -> None:
            content = json.loads(result.read_text(encoding="utf-8"))
            number = content["shard"]
            left[number] = content["rows"]
            for block, plain in content["tallies"].items():
                self.tallies[int(block)].add(BlockTally.from_plain(plain))
            for path in (taken[number].path, result, this.file(self.scratch, "task", number)):
                path.unlink()
            seen = sum(taken[number].n_rows for number in left)
            self.reporter.progress(seen, max(total, seen + 1))

        pool.run(self._tasks(this, shards, taken), done)
        self._gather(this, "rejected", len(taken), self.rejected)
        return [_Shard(this.file(self.scratch, "kept", number), left[number]) for number in range(len(taken))]

    def _tasks(self, this: _Pass, shards: Iterable[_Shard], taken: list[_Shard]) -> Iterator[Path]:
        start = 0
        for number, shard in enumerate(shards):
            taken.append(shard)
            gone = np.flatnonzero(~np.asarray(this.decision.keep[start : start + shard.n_rows], bool))
            task = Task(
                shard=number,
                rows=str(shard.path),
                drops={str(row): this.decision.details.get(start + int(row), "") for row in gone},
                drop_reason=this.decision.reason,
                **{kind: str(this.file(self.scratch, kind, number)) for kind in ("kept", "values", "rejected", "result")},
                **{name: getattr(this, name) for name in ("dropper", "first", "last", "survey")},
            )
            start += shard.n_rows
            path = this.file(self.scratch, "task", number)
            path.write_text(json.dumps(asdict(task)), encoding="utf-8")
            yield path

    def _gather(self, this: _Pass, kind: str, n_shards: int, target: Path) -> None:
        """Append the files of a pass to one, in the order of the shards, and remove them."""
        with target.open("ab") as whole:
            for number in range(n_shards):
                path = this.file(self.scratch, kind, number)
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole)
                path.unlink()

    def _decide(self, this: _Pass, shards: Sequence[_Shard]) -> Decision:
        """Have the survey of a pass decide over the values of all its rows, which are mapped from disk."""
        survey, label = self.blocks[this.survey], self.steps[this.survey].label
        path = self.scratch / f"pass{this.number}-values"
        self._gather(this, "values", len(shards), path)
        n_rows = sum(shard.n_rows for shard in shards)
        values = np.memmap(path, survey.values, "r", shape=(n_rows,)) if n_rows else np.empty(0, survey.values)
        self.reporter.log(f"block {label} decides on {n_rows} rows")
        decision: Decision = survey.decide(values, self._seed_of(this.survey))
        assert decision.keep.shape == (n_rows,), f"{label} decides on {decision.keep.shape} of {n_rows} rows"
        path.unlink()
        return decision
