"""Curation: from sources to tables of usable, split and documented rows."""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from data.configs import CurateConfig, SourceConfig
from data.forms import Example
from data.lint import lint_stage
from data.reading import examples_of
from data.reasoning import freeze, task_entries
from data.records import Demonstration, Label, Message, Preference, Prompt, Ranking, Record, record_id
from data.screening import Screen, SourceTally
from data.sources import BadRow
from data.splits import TEST_TABLES, TRAIN_TABLES, Candidate, allocate, table_quotas
from data.tables import write_table
from data.templates import load_tokenizer
from data.verifiers import verify

_ROWS_A_SIGN_OF_LIFE = 256
_BARREN_TRIES = 2_000  # entries in a row without a new question: the task has no more


class Reporter(Protocol):
    """What curation needs of the stage that runs it."""

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
    """Read every source, set unusable rows aside, split the rest and write the tables.

    Writes to ``run.out``: a Parquet table for each size that is not 0, ``rejected.jsonl`` (source, file, line, reason, detail of every row
    set aside), ``report.json`` (counts by source and reason, lengths by table) and, of preferences, ``lint.json``. ``base`` is the policy
    whose tokenizer and chat template measure the rows.

    Raises:
        ValueError: more than ``max_bad_share`` of a source's rows cannot be used; a table that no row is left for; a wrong task or column;
            faults in the pairs where lint says stop.
        FileNotFoundError: a data file or the tokenizer is missing.
        ConnectionError: the hub cannot be reached.
    """
    screen = Screen(config, load_tokenizer(base))
    tallies = [SourceTally(source.place) for source in config.sources]
    found = [
        None if source.kind == "reasoning_gym" else _file_pool(screen, number, tallies[number], run)
        for number, source in enumerate(config.sources)
    ]
    shares = table_quotas(config, found)
    pools = [
        _procedural_pool(screen, number, tallies[number], shares, seed, run) if pool is None else pool for number, pool in enumerate(found)
    ]
    protected = {candidate.key for pool in pools for candidate in pool if config.sources[candidate.source].role == "test"}
    tables, held = allocate(shares, pools, held=protected, share_rows=config.share_rows, seed=seed)
    _note_withheld(config, pools, tables, held, tallies)
    _check_filled(config, tables, run)
    meta = _write(config, tables, tallies, run)
    if config.preferences:
        run.report({"data/lint_findings": lint_stage(run.out, [], config.lint, seed, run.log)}, 0)
    return meta


# Pools: the usable rows of one source


def _file_pool(screen: Screen, number: int, tally: SourceTally, run: Reporter) -> list[Candidate]:
    source = screen.config.sources[number]
    pool: list[Candidate] = []
    for row, examples in examples_of(source):
        if tally.read % _ROWS_A_SIGN_OF_LIFE == 0:
            run.progress(tally.read, max(tally.read + 1, source.rows))
        for example in examples:
            tally.read += 1
            try:
                pool.append(screen.keep(_usable(example), number, row.file, row.line))
            except BadRow as fault:
                tally.set_aside(row.file, row.line, fault)
    if not tally.read:
        raise ValueError(f"source {tally.name} holds no rows")
    tally.check(screen.config.max_bad_share)
    run.log(f"{tally.name}: {tally.read} rows read, {len(pool)} examples kept, set aside {dict(tally.reasons.most_common()) or 'none'}")
    return pool


def _usable(example: Example | BadRow) -> Example:
    if isinstance(example, BadRow):
        raise example
    return example


def _procedural_pool(
    screen: Screen, number: int, tally: SourceTally, shares: dict[str, dict[int, int]], seed: int, run: Reporter
) -> list[Candidate]:
    """As many distinct questions of a task as the tables take of it."""
    source = screen.config.sources[number]
    needed = sum(share.get(number, 0) for share in shares.values())
    shows = number in shares.get("demonstrations", {})
    # Tasks seed entry i with seed + i: neighbouring seeds would share nearly all their entries.
    stream = task_entries(source.name, source.task, seed=int(record_id(seed, number, source.name)[:7], 16))
    pool: list[Candidate] = []
    barren = 0
    for line, entry in enumerate(stream):
        if len(pool) == needed or barren == _BARREN_TRIES:
            break
        tally.read += 1
        try:
            pool.append(screen.keep(_asked(entry, source, shows), number, tally.name, line))
            barren = 0
        except BadRow as fault:
            barren += 1
            # A small task repeats itself thousands of times: counted, not listed.
            tally.set_aside(tally.name, line, fault, listed=fault.reason != "duplicate")
        if tally.read % _ROWS_A_SIGN_OF_LIFE == 0:
            run.progress(len(pool), needed)
    tally.check(screen.config.max_bad_share)
    if len(pool) < needed:
        raise ValueError(
            f"{tally.name} with {source.task} gives only {len(pool)} distinct questions in {tally.read} tries, {needed} are needed: "
            "widen its parameters or ask for fewer rows"
        )
    _check_demonstrations(source, pool)
    run.log(f"{tally.name}: {len(pool)} distinct questions of {tally.read} generated")
    return pool


def _asked(entry: Mapping[str, Any], source: SourceConfig, shows: bool) -> Example:
    answer = entry["answer"]
    if answer is None and shows:
        raise BadRow("no_answer", "the task gives no answer to show: take it for prompts only")
    completion = None if answer is None else source.demonstration.replace("{answer}", str(answer))
    metadata = {"task": source.name, "question": entry["question"], "metadata": freeze(entry["metadata"])}
    return Example(
        (Message("user", _prompt_text(entry, source)),),
        completion=completion,
        answer=None if answer is None else str(answer),
        metadata=metadata if source.verifier_name == "reasoning_gym" else {},
    )


def _prompt_text(entry: Mapping[str, Any], source: SourceConfig) -> str:
    """The task's question in the source's own words."""
    fields = {name: value for name, value in entry["metadata"].items() if isinstance(value, str | int | float)}
    fields["question"] = entry["question"]
    try:
        return source.prompt.format_map(fields)
    except (KeyError, IndexError, ValueError, AttributeError, TypeError) as error:
        named = ", ".join(sorted(fields))
        raise ValueError(f"prompt={source.prompt!r} of {source.name} cannot be filled in ({error!r}); it may name {named}") from error


def _check_demonstrations(source: SourceConfig, pool: Sequence[Candidate]) -> None:
    """A model that imitates the demonstrations perfectly must be right."""
    if source.verifier_name == "none":
        return
    shown = [candidate.example for candidate in pool[:8] if candidate.example.completion is not None]
    verdicts = [verify(_prompt(example, source), example.completion or "") for example in shown]
    if verdicts and not any(verdict.correct for verdict in verdicts):
        raise ValueError(
            f"the demonstration {shown[0].completion!r} of {source.name} scores {verdicts[0].score:.2f} with its own verifier"
            f"{f' ({verdicts[0].error})' if verdicts[0].error else ''}: change demonstration={source.demonstration!r}, "
            f"verifier={source.verifier_name!r} or extraction={source.extraction!r}"
        )


# Tables


def _note_withheld(
    config: CurateConfig,
    pools: Iterable[Sequence[Candidate]],
    tables: dict[str, list[Candidate]],
    held: set[str],
    tallies: Sequence[SourceTally],
) -> None:
    """Set aside, by file and line, the rows that cannot train because their prompt is a held-out one."""
    tested = {id(candidate) for table in TEST_TABLES for candidate in tables[table]}
    for candidate in itertools.chain.from_iterable(pools):
        if candidate.key in held and id(candidate) not in tested and config.sources[candidate.source].role != "test":
            fault = BadRow("in_test_set", "its prompt is one of the held-out prompts")
            tallies[candidate.source].set_aside(candidate.file, candidate.line, fault)


def _check_filled(config: CurateConfig, tables: dict[str, list[Candidate]], run: Reporter) -> None:
    for table, candidates in tables.items():
        wanted = getattr(config, table)
        if wanted and not candidates:
            raise ValueError(
                f"no row is left for {table}={wanted}: take fewer elsewhere, add a source, or let tables share rows (share_rows=true)"
            )
        if len(candidates) < wanted:
            run.log(f"{table}: {len(candidates)} rows, {wanted} were asked for; the sources have no more")


def _write(config: CurateConfig, tables: dict[str, list[Candidate]], tallies: Sequence[SourceTally], run: Reporter) -> dict[str, Any]:
    wanted = [table for table in (*TRAIN_TABLES, *TEST_TABLES) if getattr(config, table)]
    for table in wanted:
        records = [_record(table, candidate.example, config.sources[candidate.source]) for candidate in tables[table]]
        write_table(run.out / f"{table}.parquet", records)
    lines = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for tally in tallies for entry in tally.rejected)
    (run.out / "rejected.jsonl").write_text(lines, encoding="utf-8", errors="backslashreplace")
    report = {
        "tables": {table: _lengths(tables[table]) for table in wanted},
        "sources": [
            {"source": tally.name, "read": tally.read, "bad": tally.bad, "set_aside": dict(sorted(tally.reasons.items()))}
            for tally in tallies
        ],
    }
    (run.out / "report.json").write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    read, bad = sum(tally.read for tally in tallies), sum(tally.bad for tally in tallies)
    run.report({"data/read_rows": read, "data/bad_rows": bad, "data/kept_rows": sum(len(tables[table]) for table in wanted)}, 0)
    return {"rows": {table: len(tables[table]) for table in wanted}, "read_rows": read, "bad_rows": bad}


def _lengths(candidates: Sequence[Candidate]) -> dict[str, float]:
    """Rows of a table with the lengths that memory and time depend on."""
    prompts = [candidate.prompt_tokens for candidate in candidates]
    completions = [candidate.completion_tokens for candidate in candidates]
    return {
        "rows": len(candidates),
        "prompt_tokens_mean": round(sum(prompts) / len(prompts), 1),
        "prompt_tokens_max": max(prompts),
        "completion_tokens_mean": round(sum(completions) / len(completions), 1),
        "completion_tokens_max": max(completions),
    }


def _record(table: str, example: Example, source: SourceConfig) -> Record:
    return _RECORDS[table.removeprefix("test_")](example, source)


def _prompt(example: Example, source: SourceConfig) -> Prompt:
    metadata = dict(example.metadata)
    if source.extraction != "answer":
        metadata["extraction"] = source.extraction
    verifier = source.verifier_name
    name = record_id("prompt", example.prompt, verifier, example.answer)
    return Prompt(name, source.place, example.prompt, answer=example.answer, verifier=verifier, metadata=metadata)


def _demonstration(example: Example, source: SourceConfig) -> Demonstration:
    messages = (*example.prompt, Message("assistant", example.completion or ""))
    return Demonstration(record_id("demonstration", messages), source.place, messages)


def _preference(example: Example, source: SourceConfig) -> Preference:
    chosen, rejected = example.chosen or "", example.rejected or ""
    name = record_id("preference", example.prompt, chosen, rejected)
    return Preference(name, source.place, example.prompt, chosen, rejected, example.margin)


def _label(example: Example, source: SourceConfig) -> Label:
    text, desirable = example.labelled or "", bool(example.desirable)
    return Label(record_id("label", example.prompt, text, desirable), source.place, example.prompt, text, desirable)


def _ranking(example: Example, source: SourceConfig) -> Ranking:
    name = record_id("ranking", example.prompt, list(example.ranked), list(example.ranks))
    return Ranking(name, source.place, example.prompt, example.ranked, example.ranks, example.scores)


_RECORDS: dict[str, Callable[[Example, SourceConfig], Record]] = {
    "demonstrations": _demonstration,
    "prompts": _prompt,
    "preferences": _preference,
    "labels": _label,
    "rankings": _ranking,
}
