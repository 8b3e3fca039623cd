"""Which row goes to which table: held-out rows first, training tables from the rest, no prompt on both sides.

Everything here is decided by the candidates' order and the seed alone.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from data.configs import CurateConfig, SourceConfig
from data.forms import Example

TEST_TABLES = ("test_preferences", "test_prompts")
# Where rows are not shared, earlier tables choose first: labelled data is scarcer than bare prompts.
TRAIN_TABLES = ("demonstrations", "preferences", "labels", "rankings", "prompts")
# A procedural task knows its answer: it can show it or ask for it, without end.
PROCEDURAL_TABLES = ("demonstrations", "prompts", "test_prompts")

_FITS: dict[str, Callable[[Example], bool]] = {
    "demonstrations": lambda example: example.completion is not None,
    "prompts": lambda example: True,
    "preferences": lambda example: example.chosen is not None,
    "labels": lambda example: example.desirable is not None,
    "rankings": lambda example: bool(example.ranks),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A usable example with what splitting and reporting need: source number, prompt key, place and lengths."""

    example: Example
    source: int
    key: str
    file: str
    line: int
    prompt_tokens: int
    completion_tokens: int


def fits(table: str, example: Example) -> bool:
    """Whether an example can become a row of a table."""
    return _FITS[table.removeprefix("test_")](example)


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


def table_quotas(config: CurateConfig, pools: Sequence[Sequence[Candidate] | None]) -> dict[str, dict[int, int]]:
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
    shares: dict[str, dict[int, int]], pools: Sequence[Sequence[Candidate]], *, held: set[str], share_rows: bool, seed: int
) -> tuple[dict[str, list[Candidate]], set[str]]:
    """The candidates of every table, and the keys of held-out prompts.

    ``held`` are prompts that may never be trained on, chosen for a test table or not. Held-out rows are one a prompt, and so are
    prompts for sampling.
    """
    shuffled = [_shuffled(pool, f"{seed}:{number}") for number, pool in enumerate(pools)]
    tables: dict[str, list[Candidate]] = {}
    held = set(held)
    for table in TEST_TABLES:
        tables[table] = _fill(table, shares.get(table, {}), shuffled, lambda candidate: True, one_a_prompt=True)
        held |= {candidate.key for candidate in tables[table]}
    owners: dict[str, str] = {}
    for table in TRAIN_TABLES:

        def free(candidate: Candidate, table: str = table) -> bool:
            return candidate.key not in held and (share_rows or owners.get(candidate.key, table) == table)

        tables[table] = _fill(table, shares.get(table, {}), shuffled, free, one_a_prompt=table == "prompts")
        owners.update(dict.fromkeys((candidate.key for candidate in tables[table]), table))
    return {table: _shuffled(rows, f"{seed}:{table}") for table, rows in tables.items()}, held


def _can_supply(table: str, pool: Sequence[Candidate] | None) -> bool:
    if pool is None:
        return table in PROCEDURAL_TABLES
    return any(fits(table, candidate.example) for candidate in pool)


def _fill(
    table: str,
    share: dict[int, int],
    pools: Sequence[Sequence[Candidate]],
    free: Callable[[Candidate], bool],
    *,
    one_a_prompt: bool,
) -> list[Candidate]:
    chosen: list[Candidate] = []
    seen: set[str] = set()
    for number, quota in share.items():
        end = len(pools[number]) if quota == -1 else quota
        taken = 0
        for candidate in pools[number]:
            if taken == end:
                break
            if (one_a_prompt and candidate.key in seen) or not free(candidate) or not fits(table, candidate.example):
                continue
            seen.add(candidate.key)
            chosen.append(candidate)
            taken += 1
    return chosen


def _shuffled(candidates: Sequence[Candidate], seed: str) -> list[Candidate]:
    order = list(candidates)
    random.Random(seed).shuffle(order)
    return order
