"""Held-out pairs from outside the data of a run, such as RewardBench's: prompt, chosen, rejected, and the subset that a row belongs to."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.configs import SourceConfig
from data.conversions import record_of
from data.forms import mapped
from data.reading import examples_of
from data.records import Preference
from data.sources import BadRow


@dataclass(frozen=True, slots=True)
class SubsetPair:
    """A pair, and the subset that the data says it is of; empty where it says none."""

    pair: Preference
    subset: str = ""


def read_pair_set(source: SourceConfig) -> tuple[list[SubsetPair], Counter[str]]:
    """Every pair of a source once, in order, and how many rows could not be used, by reason.

    Rows are in any form that has pairs; a column ``subset`` (or what ``columns`` maps to it) names the subset, as in RewardBench
    (Lambert et al. 2024).

    Raises:
        FileNotFoundError: no such file.
        ValueError: the source cannot be read, or has no pair.
        ConnectionError: the hub cannot be reached.
    """
    found: dict[str, SubsetPair] = {}
    bad: Counter[str] = Counter()
    for row, examples in examples_of(source):
        subset = _subset(mapped(row.values or {}, source.columns))
        for example in examples:
            if isinstance(example, BadRow):
                bad[example.reason] += 1
            elif example.chosen is None or example.rejected is None:
                bad["no_pair"] += 1
            else:
                record = record_of("preferences", example, source)
                assert isinstance(record, Preference)
                bad["duplicate"] += record.id in found
                found.setdefault(record.id, SubsetPair(record, subset))
    if not found:
        raise ValueError(
            f"{source.place} has no row with chosen and rejected ({dict(bad)}): give pairs, such as rows of prompt, chosen and rejected, "
            "or map the names of its columns (columns)"
        )
    return list(found.values()), +bad


def _subset(row: Mapping[str, Any]) -> str:
    value = row.get("subset")
    return str(value).strip() if isinstance(value, str | int) else ""
