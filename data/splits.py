"""Which row goes to which table: held-out rows first, training tables from the rest, no prompt on both sides.

Everything here is decided by the candidates' order and the seed alone.
"""

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from data.configs import CurateConfig, SourceConfig
from data.forms import Example

TEST_TABLES = ("test_preferences", "test_prompts")
# Where rows are not shared, earlier tables choose first: labelled data is scarcer than bare prompts.
TRAIN_TABLES = ("demonstrations", "preferences", "labels", "rankings", "prompts", "documents")
# A procedural task knows its answer: it can show it or ask for it, without end.
PROCEDURAL_TABLES = ("demonstrations", "prompts", "test_prompts")

C = TypeVar("C")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What splitting and reporting need of a usable example, which itself is on disk: there may be millions.

    ``place``: where the example is in its store. ``fits``: the tables it can become a row of. ``key``: what names its prompt (of a
    document, its text). Lengths are in tokens.
    """

    place: int
    fits: frozenset[str]
    source: int
    key: bytes
    file: str
    line: int
    prompt_tokens: int
    completion_tokens: int


Pool = Sequence[Candidate | None]  # the usable rows of one source in order; None for one that has been taken out


def tables_of(example: Example) -> frozenset[str]:
    """The tables that an example can become a row of."""
    asks = bool(example.prompt)
    shows = example.completion is not None
    return _tables(asks, shows, example.chosen is not None, example.desirable is not None, bool(example.ranks))


@functools.cache
def _tables(asks: bool, shows: bool, compares: bool, labels: bool, ranks: bool) -> frozenset[str]:
    can = {"demonstrations": shows, "prompts": True, "preferences": compares, "labels": labels, "rankings": ranks}
    if not asks:
        return frozenset({"documents"} if shows else ())
    found = {table for table, is_able in can.items() if is_able}
    return frozenset(found | {f"test_{table}" for table in found})


def feeds(source: SourceConfig, table: str, *, only_test_sources: bool) -> bool:
    """Whether a source may supply a table, by its role; where some source is for testing only, held-out rows come from such alone."""
    if table in TEST_TABLES:
        return source.role == "test" or (source.role == "both" and not only_test_sources)
    return source.role != "test"


def quotas(total: int, weights: Sequence[float]) -> list[int]:
    """``total`` rows shared out by weight, whole rows, the largest remainders first. All -1 where ``total`` is -1."""
    if total == -1:
        return [-1] * len(weights)
    exact = [total * weight / sum(weights) for weight in weights]
    counts = [int(share) for share in exact]
    by_remainder = sorted(range(len(weights)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: total - sum(counts)]:
        counts[index] += 1
    return counts


def table_quotas(config: CurateConfig, pools: Sequence[Pool | None]) -> dict[str, dict[int, int]]:
    """Rows that each source supplies to each table: ``{table: {source number: rows}}``. A pool of None is an endless source.

    Raises:
        ValueError: a wanted table that no source can feed, or "every row" of an endless source.
    """
    only_test_sources = any(source.role == "test" for source in config.sources)
    shares: dict[str, dict[int, int]] = {}
    for table in (*TEST_TABLES, *TRAIN_TABLES):
        size = getattr(config, table)
        if not size:
            continue
        able = [
            number
            for number, (source, pool) in enumerate(zip(config.sources, pools, strict=True))
            if feeds(source, table, only_test_sources=only_test_sources) and _can_supply(table, pool)
        ]
        if not able:
            raise ValueError(f"{table}={size}, but no source supplies such rows; set {table}=0 or add a source of that form and role")
        if size == -1 and any(pools[number] is None for number in able):
            raise ValueError(f"{table}=-1 means every row, but a reasoning_gym task has no end: give a number of rows")
        shares[table] = dict(zip(able, quotas(size, [config.sources[number].weight for number in able]), strict=True))
    return shares


def allocate(
    shares: dict[str, dict[int, int]], pools: Sequence[Pool], *, held: set[bytes], share_rows: bool, seed: int
) -> tuple[dict[str, list[Candidate]], set[bytes]]:
    """The candidates of every table, and the keys of held-out prompts: ``hold_out``, then ``share_out``."""
    tests, held = hold_out(shares, pools, held=held, seed=seed)
    return tests | share_out(shares, pools, held=held, share_rows=share_rows, seed=seed), held


def hold_out(
    shares: dict[str, dict[int, int]], pools: Sequence[Pool], *, held: set[bytes], seed: int
) -> tuple[dict[str, list[Candidate]], set[bytes]]:
    """The candidates of the test tables, one a prompt, and the keys of held-out prompts.

    ``held`` are prompts that may never be trained on, chosen for a test table or not.
    """
    decks = _decks(pools, seed)
    tables: dict[str, list[Candidate]] = {}
    held = set(held)
    for table in TEST_TABLES:
        tables[table] = _fill(table, shares.get(table, {}), decks, lambda candidate: True, one_a_prompt=True)
        held |= {candidate.key for candidate in tables[table]}
    return {table: _shuffled(rows, f"{seed}:{table}") for table, rows in tables.items()}, held


def share_out(
    shares: dict[str, dict[int, int]], pools: Sequence[Pool], *, held: set[bytes], share_rows: bool, seed: int
) -> dict[str, list[Candidate]]:
    """The candidates of the training tables. Prompts for sampling are one a prompt.

    The pools are those of ``hold_out``, where candidates may have been taken out or replaced since: no other one moves for that.
    """
    decks = _decks(pools, seed)
    tables: dict[str, list[Candidate]] = {}
    owners: dict[bytes, str] = {}
    for table in TRAIN_TABLES:

        def free(candidate: Candidate, table: str = table) -> bool:
            return candidate.key not in held and (share_rows or owners.get(candidate.key, table) == table)

        tables[table] = _fill(table, shares.get(table, {}), decks, free, one_a_prompt=table == "prompts")
        owners.update(dict.fromkeys((candidate.key for candidate in tables[table]), table))
    return {table: _shuffled(rows, f"{seed}:{table}") for table, rows in tables.items()}


def _decks(pools: Sequence[Pool], seed: int) -> list[list[Candidate]]:
    shuffled = (_shuffled(pool, f"{seed}:{number}") for number, pool in enumerate(pools))
    return [[candidate for candidate in deck if candidate is not None] for deck in shuffled]


def _can_supply(table: str, pool: Pool | None) -> bool:
    if pool is None:
        return table in PROCEDURAL_TABLES
    return any(candidate is not None and table in candidate.fits for candidate in pool)


def _fill(
    table: str,
    share: dict[int, int],
    pools: Sequence[Sequence[Candidate]],
    free: Callable[[Candidate], bool],
    *,
    one_a_prompt: bool,
) -> list[Candidate]:
    chosen: list[Candidate] = []
    seen: set[bytes] = set()
    for number, quota in share.items():
        end = len(pools[number]) if quota == -1 else quota
        taken = 0
        for candidate in pools[number]:
            if taken == end:
                break
            if (one_a_prompt and candidate.key in seen) or not free(candidate) or table not in candidate.fits:
                continue
            seen.add(candidate.key)
            chosen.append(candidate)
            taken += 1
    return chosen


def _shuffled(candidates: Sequence[C], seed: str) -> list[C]:
    order = list(candidates)
    random.Random(seed).shuffle(order)
    return order
