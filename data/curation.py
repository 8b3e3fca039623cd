"""Curation: from sources to tables of usable, split and documented rows."""

import contextlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data.blocks.base import Row
from data.blocks.executor import Passed, Step, judges_evaluation, run_blocks, steps_of
from data.blocks.offers import Offers, take_offers
from data.blocks.rows import RowStore
from data.configs import CurateConfig
from data.conversions import record_of
from data.curation_report import BlockReport, Curated, write_report
from data.forms import Example
from data.lint import lint_stage
from data.procedural import asked, check_demonstrations
from data.reading import examples_of
from data.reasoning import task_entries
from data.records import Record, record_id
from data.screening import Screen, SourceTally, prepared
from data.sources import BadRow
from data.splits import TEST_TABLES, TRAIN_TABLES, Candidate, Pool, hold_out, share_out, table_quotas
from data.tables import write_table
from data.templates import load_tokenizer

_ROWS_A_SIGN_OF_LIFE = 256
_BARREN_TRIES = 2_000  # entries in a row without a new question: the task has no more


class Shared(Protocol):
    """Processes on other hosts that see a folder."""

    @property
    def folder(self) -> Path:
        """Where tasks are offered."""
        ...

    @property
    def followers(self) -> int:
        """How many there are to take them."""
        ...


class Reporter(Protocol):
    """What curation needs of the stage that runs it."""

    @property
    def sharing(self) -> Shared | None:
        """Where there are other processes to work with; None where there are none."""
        ...

    @property
    def out(self) -> Path:
        """Where the tables go."""
        ...

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Record metrics."""
        ...

    def progress(self, done: int, total: int, **rates: float) -> None:
        """Tell how far it is."""
        ...

    def log(self, text: str) -> None:
        """Tell a line."""
        ...


def curate(config: CurateConfig, *, base: Path, seed: int, run: Reporter) -> dict[str, Any]:
    """Read every source, pass its rows through the blocks, set unusable ones aside, split the rest and write the tables.

    Writes to ``run.out``: a Parquet table for each size that is not 0, ``rejected.jsonl`` (source, file, line, reason, detail of every row
    set aside, and the block where it was one), ``report.json`` (counts by source, block and reason, lengths by table), ``report.html`` for
    people, ``card.md``, the data card, and of preferences ``lint.json``. ``base`` is the policy whose tokenizer and chat template measure
    the rows. In memory of a row there is only its ``Candidate``.

    Raises:
        ValueError: more than ``max_bad_share`` of a source's rows cannot be used; a table that no row is left for; a wrong task or column;
            faults in the pairs where lint says stop.
        FileNotFoundError: a data file or the tokenizer is missing.
        ConnectionError: the hub cannot be reached.
        ChildProcessError: a process of a block died.
    """
    with tempfile.TemporaryDirectory(dir=run.out.parent, prefix="curate-") as scratch, contextlib.ExitStack() as files:
        return _Curation(config, base, seed, run, Path(scratch), files).run()


def work_along(config: CurateConfig, *, base: Path, seed: int, run: Reporter) -> None:
    """A process on another host that runs blocks for a curation, until it is ended."""
    assert run.sharing is not None
    take_offers(run.sharing.folder, lambda: None)


class _Curation:
    """One run of curation: what its steps share."""

    def __init__(self, config: CurateConfig, base: Path, seed: int, run: Reporter, scratch: Path, files: contextlib.ExitStack) -> None:
        self.config, self.seed, self.reporter, self.scratch = config, seed, run, scratch
        self.store = files.enter_context(contextlib.closing(RowStore(scratch / "examples")))
        self.screen = Screen(config, load_tokenizer(base), self.store)
        self.tallies = [SourceTally(source.place, files.enter_context(self._listing(n))) for n, source in enumerate(config.sources)]
        steps = steps_of(config.blocks)
        first = next((number for number, step in enumerate(steps) if judges_evaluation(step)), len(steps))
        self.before_split, self.after_split = steps[:first], steps[first:]
        self.offers = Offers(run.sharing.folder, run.sharing.followers) if run.sharing is not None else None
        self.blocks: list[BlockReport] = []
        self.passed: list[Passed] = []

    def run(self) -> dict[str, Any]:
        config = self.config
        found = self._file_pools()
        shares = table_quotas(config, found)
        pools: list[Pool] = [self._procedural_pool(n, shares) if pool is None else pool for n, pool in enumerate(found)]
        protected = {c.key for pool in pools for c in pool if c is not None and config.sources[c.source].role == "test"}
        tests, held = hold_out(shares, pools, held=protected, seed=self.seed)
        self._note_withheld(pools, tests, held)
        pools = self._decontaminated(pools, tests, held)
        tables = tests | share_out(shares, pools, held=held, share_rows=config.share_rows, seed=self.seed)
        self._check_filled(tables)
        meta = self._write(tables)
        if config.preferences:
            found_faults = lint_stage(self.reporter.out, [], config.lint, self.seed, self.reporter.log)
            self.reporter.report({"data/lint_findings": found_faults}, 0)
        return meta

    def _listing(self, number: int) -> Any:
        return (self.scratch / f"rejected-{number}.jsonl").open("w", encoding="utf-8", errors="backslashreplace")

    # Pools: the usable rows of one source

    def _file_pools(self) -> list[list[Candidate] | None]:
        """The usable rows of every file and hub source; None for a procedural task."""
        pools: list[list[Candidate] | None] = [None if source.kind == "reasoning_gym" else [] for source in self.config.sources]
        for row in self._usable_rows():
            pool, candidate = pools[row.source], self._screened(row)
            if pool is not None and candidate is not None:
                pool.append(candidate)
        for tally, pool in zip(self.tallies, pools, strict=True):
            if pool is not None:
                tally.check(self.config.max_bad_share)
                gone = tally.reasons + tally.blocked
                self.reporter.log(
                    f"{tally.name}: {tally.read} rows read, {len(pool)} examples kept, set aside {dict(gone.most_common()) or 'none'}"
                )
        return pools

    def _screened(self, row: Row) -> Candidate | None:
        try:
            return self.screen.keep(row)
        except BadRow as fault:
            self.tallies[row.source].set_aside(row.file, row.line, fault)
            return None

    def _usable_rows(self) -> Iterator[Row]:
        """The rows of all files and hub datasets; those that are not for testing only have passed the blocks."""
        read = [number for number, source in enumerate(self.config.sources) if source.kind != "reasoning_gym"]
        if not self.before_split:
            yield from self._read(read)
            return
        tested = [number for number in read if self.config.sources[number].role == "test"]
        rows = self._read(sorted(set(read) - set(tested)))
        yield from (numbered.row for numbered in self._through(rows, self.before_split, lambda: ()).rows())
        yield from self._read(tested)

    def _read(self, numbers: Iterable[int]) -> Iterator[Row]:
        for number in numbers:
            source, tally = self.config.sources[number], self.tallies[number]
            for raw, examples in examples_of(source):
                if tally.read % _ROWS_A_SIGN_OF_LIFE == 0:
                    self.reporter.progress(tally.read, max(tally.read + 1, source.rows))
                for example in examples:
                    tally.read += 1
                    if isinstance(example, BadRow):
                        tally.set_aside(raw.file, raw.line, example)
                    else:
                        yield Row(number, raw.file, raw.line, example)
            if not tally.read:
                raise ValueError(f"source {tally.name} holds no rows")
            tally.check(self.config.max_bad_share)

    def _through(self, rows: Iterable[Row], steps: Sequence[Step], evaluated: Callable[[], Iterable[str]]) -> Passed:
        scratch = self.scratch / f"blocks{len(self.passed)}"
        scratch.mkdir()
        passed = run_blocks(
            rows,
            steps,
            sources=[tally.name for tally in self.tallies],
            evaluated=evaluated,
            scratch=scratch,
            seed=self.seed,
            workers=self.config.workers,
            run=self.reporter,
            offers=self.offers,
        )
        self.passed.append(passed)
        for step, tally in zip(steps, passed.tallies, strict=True):
            self.blocks.append(BlockReport(step.label, dict(step.settings), tally))
            for source, reasons in tally.rejected.items():
                self.tallies[source].blocked[step.label] += reasons.total()
        return passed

    # Blocks that compare with what is evaluated on

    def _decontaminated(self, pools: list[Pool], tests: dict[str, list[Candidate]], held: set[bytes]) -> list[Pool]:
        """The pools after the blocks from the first that asks for the evaluated texts on; rows that may not train do not pass them."""
        if not self.after_split:
            return pools
        sources = self.config.sources
        tested = {c.place for pool in pools for c in pool if c is not None and sources[c.source].role == "test"}
        tested |= {candidate.place for table in tests.values() for candidate in table}
        rows = (self.store[candidate.place] for _, _, candidate in self._trainable(pools, held))
        passed = self._through(rows, self.after_split, lambda: (self.store[place].text for place in sorted(tested))).rows()
        left: list[list[Candidate | None]] = [list(pool) for pool in pools]
        survivor = next(passed, None)
        for order, (number, position, candidate) in enumerate(self._trainable(pools, held)):
            kept: Candidate | None = None
            if survivor is not None and survivor.number == order:
                kept = self._screened(survivor.row) if survivor.edited else candidate
                survivor = next(passed, None)
            left[number][position] = kept
        return list(left)

    def _trainable(self, pools: Sequence[Pool], held: set[bytes]) -> Iterator[tuple[int, int, Candidate]]:
        for number, (source, pool) in enumerate(zip(self.config.sources, pools, strict=True)):
            if source.role != "test" and source.kind != "reasoning_gym":
                yield from ((number, n, c) for n, c in enumerate(pool) if c is not None and c.key not in held)

    # Procedural tasks

    def _procedural_pool(self, number: int, shares: dict[str, dict[int, int]]) -> list[Candidate]:
        """As many distinct questions of a task as the tables take of it."""
        source, tally = self.config.sources[number], self.tallies[number]
        needed = sum(share.get(number, 0) for share in shares.values())
        shows = number in shares.get("demonstrations", {})
        # Tasks seed entry i with seed + i: neighbouring seeds would share nearly all their entries.
        stream = task_entries(source.name, source.task, seed=int(record_id(self.seed, number, source.name)[:7], 16))
        pool: list[Candidate] = []
        barren = 0
        for line, entry in enumerate(stream):
            if len(pool) == needed or barren == _BARREN_TRIES:
                break
            tally.read += 1
            try:
                pool.append(self.screen.keep(Row(number, tally.name, line, asked(entry, source, shows))))
                barren = 0
            except BadRow as fault:
                barren += 1
                # A small task repeats itself thousands of times: counted, not listed.
                tally.set_aside(tally.name, line, fault, listed=fault.reason != "duplicate")
            if tally.read % _ROWS_A_SIGN_OF_LIFE == 0:
                self.reporter.progress(len(pool), needed)
        tally.check(self.config.max_bad_share)
        if len(pool) < needed:
            raise ValueError(
                f"{tally.name} with {source.task} gives only {len(pool)} distinct questions in {tally.read} tries, {needed} are needed: "
                "widen its parameters or ask for fewer rows"
            )
        check_demonstrations(source, [self._example(candidate) for candidate in pool[:8]])
        self.reporter.log(f"{tally.name}: {len(pool)} distinct questions of {tally.read} generated")
        return pool

    # Tables

    def _note_withheld(self, pools: Iterable[Pool], tests: dict[str, list[Candidate]], held: set[bytes]) -> None:
        """Set aside, by file and line, the rows that cannot train because their prompt is a held-out one."""
        tested = {id(candidate) for table in tests.values() for candidate in table}
        for candidate in itertools.chain.from_iterable(pools):
            assert candidate is not None
            if candidate.key in held and id(candidate) not in tested and self.config.sources[candidate.source].role != "test":
                fault = BadRow("in_test_set", "its prompt is one of the held-out prompts")
                self.tallies[candidate.source].set_aside(candidate.file, candidate.line, fault)

    def _check_filled(self, tables: dict[str, list[Candidate]]) -> None:
        for table, candidates in tables.items():
            wanted = getattr(self.config, table)
            if wanted and not candidates:
                raise ValueError(
                    f"no row is left for {table}={wanted}: take fewer elsewhere, add a source, or let tables share rows (share_rows=true)"
                )
            if len(candidates) < wanted:
                self.reporter.log(f"{table}: {len(candidates)} rows, {wanted} were asked for; the sources have no more")

    def _example(self, candidate: Candidate) -> Example:
        return prepared(self.store[candidate.place].example, self.config.sources[candidate.source], self.config.system_prompt)

    def _record(self, table: str, candidate: Candidate) -> Record:
        return record_of(table, self._example(candidate), self.config.sources[candidate.source])

    def _text(self, candidate: Candidate) -> str:
        return self.store[candidate.place].text

    def _write(self, tables: dict[str, list[Candidate]]) -> dict[str, Any]:
        config, run = self.config, self.reporter
        wanted = {table: tables[table] for table in (*TRAIN_TABLES, *TEST_TABLES) if getattr(config, table)}
        for table, candidates in wanted.items():
            write_table(run.out / f"{table}.parquet", (self._record(table, candidate) for candidate in candidates))
        self._write_rejected()
        tokenizer = self.screen.tokenizer
        write_report(run.out, Curated(config, self.seed, tokenizer, self.tallies, self.blocks, wanted, self._record, self._text))
        read, bad = sum(tally.read for tally in self.tallies), sum(tally.bad for tally in self.tallies)
        metrics = {"data/read_rows": read, "data/bad_rows": bad, "data/kept_rows": sum(map(len, wanted.values()))}
        meta = {"rows": {table: len(candidates) for table, candidates in wanted.items()}, "read_rows": read, "bad_rows": bad}
        if self.blocks:
            metrics["data/rejected_rows"] = meta["rejected_rows"] = sum(tally.blocked.total() for tally in self.tallies)
        run.report(metrics, 0)
        return meta

    def _write_rejected(self) -> None:
        """One list: what reading and screening set aside, by source, then what each block rejected."""
        for tally in self.tallies:
            tally.listing.flush()
        parts = [self.scratch / f"rejected-{number}.jsonl" for number in range(len(self.tallies))]
        with (self.reporter.out / "rejected.jsonl").open("wb") as whole:
            for path in [*parts, *(passed.rejected for passed in self.passed)]:
                with path.open("rb") as part:
                    shutil.copyfileobj(part, whole)
