"""Lint of preference pairs: what is wrong with a set before a model learns it."""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.degenerate import degenerate
from data.intervals import wilson
from data.label_noise import estimate_noise
from data.records import Messages, Preference, Prompt, folded, normalised_text
from data.tables import read_table
from data.triggers import find_triggers, grams

LINT_FILE = "lint.json"
LENGTH_SHARE = 0.6  # of pairs won by the longer answer, from which on length may be what is learned
NOISE_SHARE = 0.25  # of labels; people who label with care flip about 15 %
_EXAMPLES = 5
_SHOWN_CHARACTERS = 100
_TRIGGER_PAIRS, _NOISE_PAIRS = 20_000, 5_000  # larger sets are sampled


@dataclass(frozen=True, slots=True)
class Finding:
    """One kind of trouble: a fault, which is always wrong, or a tendency, which may be meant."""

    check: str
    is_fault: bool
    count: int
    of: int
    message: str
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lint:
    """All findings about a set, and what was measured."""

    pairs: int
    findings: list[Finding]
    measured: dict[str, Any] = field(default_factory=dict)

    @property
    def faults(self) -> list[Finding]:
        """The findings that are always wrong."""
        return [finding for finding in self.findings if finding.is_fault]

    def lines(self) -> list[str]:
        """One line a finding, with an example."""
        said = [(f"lint: {f.message} ({f.count} of {f.of})", f.examples) for f in self.findings]
        return [line + (f", such as {examples[0]}" if examples else "") for line, examples in said]

    def to_json(self) -> str:
        """All of it."""
        document = {"pairs": self.pairs, "findings": [asdict(finding) for finding in self.findings], **self.measured}
        return json.dumps(document, indent=1) + "\n"


def lint_stage(folder: Path, others: Sequence[Path], action: Literal["warn", "stop", "off"], seed: int, log: Callable[[str], None]) -> int:
    """Lint the pairs that a stage has written into ``folder``, tell the findings, and write ``lint.json``; returns how many there are.

    Raises:
        ValueError: ``action`` is stop and there are faults; tendencies (length, noise) stop nothing.
    """
    if action == "off":
        return 0
    lint = lint_folder(folder, others, seed)
    (folder / LINT_FILE).write_text(lint.to_json(), encoding="utf-8")
    for line in lint.lines():
        log(line)
    if action == "stop" and lint.faults:
        found = "; ".join(line.removeprefix("lint: ") for line in Lint(lint.pairs, lint.faults).lines())
        raise ValueError(f"lint found faults in the preferences: {found}. Mend the data, or set lint to warn")
    return len(lint.findings)


def lint_folder(folder: Path, others: Sequence[Path] = (), seed: int = 0) -> Lint:
    """Lint ``preferences.parquet`` of a folder, held against the test tables of that folder and others."""
    held: dict[str, list[Messages]] = defaultdict(list)
    for place in (folder, *others):
        if (table := place / "test_preferences.parquet").is_file():
            held["test_preferences"] += [pair.prompt for pair in read_table(table, Preference)]
        if (table := place / "test_prompts.parquet").is_file():
            held["test_prompts"] += [prompt.messages for prompt in read_table(table, Prompt)]
    return lint_pairs(read_table(folder / "preferences.parquet", Preference), held, seed)


def lint_pairs(pairs: Sequence[Preference], held: Mapping[str, Sequence[Messages]], seed: int = 0) -> Lint:
    """Lint pairs; ``held`` names the prompts that may not be among them, by table."""
    if not pairs:
        return Lint(0, [])
    measured: dict[str, Any] = {"length": _length(pairs)}
    findings = [_identical(pairs), _contradicted(pairs), *_leaked(pairs, held), *_degenerate(pairs), _length_finding(measured["length"])]
    for finding, entry in (_triggers(_sampled(pairs, _TRIGGER_PAIRS, seed)), _noise(_sampled(pairs, _NOISE_PAIRS, seed), seed)):
        findings.append(finding)
        measured |= entry
    return Lint(len(pairs), [finding for finding in findings if finding.count], measured)


def shown(text: str) -> str:
    """The beginning of a text in one safe line."""
    return json.dumps(text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "...")


# Checks


def _finding(check: str, is_fault: bool, found: Iterable[str], of: int, message: str) -> Finding:
    every = list(found)
    return Finding(check, is_fault, len(every), of, message, tuple(every[:_EXAMPLES]))


def _identical(pairs: Sequence[Preference]) -> Finding:
    found = [f"{shown(pair.chosen)} to {shown(pair.prompt[-1].content)}" for pair in pairs if folded(pair.chosen) == folded(pair.rejected)]
    return _finding("identical", True, found, len(pairs), "chosen and rejected are the same text but for case and white space")


def _contradicted(pairs: Sequence[Preference]) -> Finding:
    winners: dict[Any, set[str]] = defaultdict(set)
    for pair in pairs:
        answers = frozenset((folded(pair.chosen), folded(pair.rejected)))
        if len(answers) == 2:
            winners[normalised_text(pair.prompt), answers].add(folded(pair.chosen))
    found = [f"{' and '.join(map(shown, sorted(both)))} to {shown(key[0])}" for key, both in winners.items() if len(both) == 2]
    return _finding("contradiction", True, found, len(winners), "the same two answers win and lose against each other")


def _leaked(pairs: Sequence[Preference], held: Mapping[str, Sequence[Messages]]) -> list[Finding]:
    findings = []
    for table, prompts in held.items():
        keys = {normalised_text(prompt) for prompt in prompts}
        found = [shown(pair.prompt[-1].content) for pair in pairs if normalised_text(pair.prompt) in keys]
        findings.append(_finding("leak", True, found, len(pairs), f"the prompt is also in {table}"))
    return findings


def _degenerate(pairs: Sequence[Preference]) -> list[Finding]:
    """Answers that are none, and apart from them those that seem to order their judge about: words can be meant otherwise."""
    reasons = [(pair, degenerate(pair.chosen)) for pair in pairs if not degenerate(pair.rejected)]
    none = [f"{shown(pair.chosen)} ({why})" for pair, why in reasons if why and why != "order_to_judge"]
    orders = [shown(pair.chosen) for pair, why in reasons if why == "order_to_judge"]
    return [
        _finding("degenerate", True, none, len(pairs), "an answer that is none was chosen over one that is"),
        _finding("order", False, orders, len(pairs), "a chosen answer may hold an order to its judge"),
    ]


def _length(pairs: Sequence[Preference]) -> dict[str, Any]:
    """Share of the pairs won by the longer answer with its interval, and P(a chosen answer is longer than a rejected one), ties half."""
    chosen, rejected = (np.array([len(getattr(pair, side)) for pair in pairs]) for side in ("chosen", "rejected"))
    longer, differ = int((chosen > rejected).sum()), int((chosen != rejected).sum())
    ordered = np.sort(rejected)
    below, through = (np.searchsorted(ordered, chosen, side=side).mean() for side in ("left", "right"))
    interval = wilson(longer, differ) if differ else None
    return {
        "longer_chosen": longer,
        "pairs_of_different_length": differ,
        "share": None if interval is None else [round(value, 4) for value in (interval.mean, interval.low, interval.high)],
        "auc": round(float(below + through) / (2 * len(pairs)), 4),
    }


def _length_finding(length: Mapping[str, Any]) -> Finding:
    longer, differ = length["longer_chosen"], length["pairs_of_different_length"]
    _, low, high = length["share"] or (0.5, 0.0, 1.0)
    winner, count = "longer", longer
    if high < 0.5:
        winner, count, low, high = "shorter", differ - longer, 1 - high, 1 - low
    message = f"the {winner} answer wins, {low:.0%} to {high:.0%} of the time"
    return Finding("length_bias", False, count if low > LENGTH_SHARE else 0, differ, message)


def _triggers(pairs: Sequence[Preference]) -> tuple[Finding, dict[str, Any]]:
    triggers = find_triggers(pairs)
    found = [f"{shown(t.words)}, {t.side} in {t.count} of {t.pairs} pairs (chance {t.expected:.0%}, p = {t.p_value:.0e})" for t in triggers]
    words = {trigger.words for trigger in triggers}
    decided = sum(bool(words & (grams(pair.chosen) ^ grams(pair.rejected))) for pair in pairs) if words else 0
    finding = Finding("trigger", True, decided, len(pairs), f"{len(words)} words decide which answer wins", tuple(found[:_EXAMPLES]))
    return finding, {"triggers": [asdict(trigger) for trigger in triggers[:50]]}


def _noise(pairs: Sequence[Preference], seed: int) -> tuple[Finding, dict[str, Any]]:
    noise = estimate_noise(pairs, seed)
    twice = noise.twice
    is_noisy = twice is not None and twice.low > NOISE_SHARE
    said = "" if twice is None else f"labels given twice show {twice.low:.0%} to {twice.high:.0%} wrong labels"
    doubtful = [f"{shown(pairs[i].chosen)} over {shown(pairs[i].rejected)}" for i in noise.doubtful[:_EXAMPLES]]
    measured = {
        "labelled_twice": noise.labelled_twice,
        "estimate": None if twice is None else [round(value, 4) for value in (twice.mean, twice.low, twice.high)],
        "at_most": noise.at_most,
        "doubtful": doubtful,
    }
    return Finding("noise", False, noise.labelled_twice if is_noisy else 0, len(pairs), said), {"noise": measured}


def _sampled(pairs: Sequence[Preference], most: int, seed: int) -> Sequence[Preference]:
    if len(pairs) <= most:
        return pairs
    return [pairs[i] for i in sorted(random.Random(f"lint:{seed}").sample(range(len(pairs)), most))]
