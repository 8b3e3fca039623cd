"""Labels of people as judgements, and judgements from and to the standard forms of pairs and rankings.

    {"prompt": [{"role": "user", "content": "..."}], "chosen": "...", "rejected": "...", "grade": 2, "judge": "person:ada"}
    {"prompt": [...], "completions": ["...", "..."], "ranks": [1, 0], "grade": -2, "judge": "person:ada", "order": [1, 0]}
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from data.configs import SourceConfig
from data.forms import Example, detect_form, mapped, parse
from data.judgements import WORSE, Candidates, Judgement
from data.labelling.records import Answer, Given, Item, checked, is_askable
from data.records import Messages, record_id
from data.sources import BadRow, read_rows

ExportForm = Literal["pairs", "rankings"]
PERSON = "person:"


def items_of(candidates: Iterable[Candidates]) -> list[Item]:
    """What people are asked: each set of candidates once, those with nothing to choose left out.

    Raises:
        ValueError: one id for two different sets.
    """
    items: dict[str, Item] = {}
    for row in candidates:
        if not is_askable(row):
            continue
        item = Item(row.id, row.prompt, row.completions)
        if items.setdefault(row.id, item) != item:
            raise ValueError(f"two different sets of candidates have the id {row.id!r}: derive ids from the content")
    return list(items.values())


def judgements_of(candidates: Iterable[Candidates], given: Iterable[Given]) -> list[Judgement]:
    """One judgement for each label of a person, ``judge`` being ``person:NAME``; a skipped item is an abstention.

    Answers to items with a known answer are left out: nobody's candidates.
    """
    known = {row.id: row for row in candidates}
    return [
        Judgement(
            id=row.item,
            source=known[row.item].source,
            judge=f"{PERSON}{row.annotator}",
            prompt=known[row.item].prompt,
            completions=known[row.item].completions,
            ranks=row.ranks,
            grade=row.grade,
            order=row.order,
            reason="" if row.ranks else "skipped",
            comment=row.comment,
        )
        for row in given
        if row.item in known and not row.gold_ranks
    ]


# Standard forms


def to_rows(judgements: Iterable[Judgement], form: ExportForm) -> Iterator[dict[str, Any]]:
    """Rows of a standard form. Abstentions have none; as pairs a ranking gives every pair that differs in rank, and a tie none."""
    for judgement in judgements:
        if judgement.abstained:
            continue
        common = {"judge": judgement.judge, "comment": judgement.comment, "source": judgement.source}
        prompt = [asdict(message) for message in judgement.prompt]
        if form == "rankings":
            ranked = {"completions": list(judgement.completions), "ranks": list(judgement.ranks), "grade": judgement.grade}
            yield {"prompt": prompt, **ranked, "order": list(judgement.order), **common}
            continue
        for better, worse in itertools.permutations(range(len(judgement.ranks)), 2):
            if judgement.ranks[better] < judgement.ranks[worse]:
                texts = {"chosen": judgement.completions[better], "rejected": judgement.completions[worse]}
                yield {"prompt": prompt, **texts, "grade": abs(judgement.grade), **common}


def write_rows(path: Path, judgements: Iterable[Judgement], form: ExportForm) -> int:
    """Write a standard form as JSON lines; returns how many."""
    lines = [json.dumps(row, ensure_ascii=False) for row in to_rows(judgements, form)]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
    return len(lines)


def read_judgements(path: Path, judge: str) -> list[Judgement]:
    """Judgements of a file of pairs or rankings, in any form that the loaders know. ``judge`` names who judged where a row does not.

    Raises:
        ValueError: a row that is no pair and no ranking, with its line.
        FileNotFoundError: there is no such file.
    """
    found = []
    for row in read_rows(SourceConfig(kind="file", name=str(path))):
        try:
            if row.values is None:
                raise row.fault or ValueError("it cannot be read")
            values = mapped(row.values, {})
            examples = parse(values, detect_form(values, values))
            found += [_judgement_of(example, values, judge) for example in examples]
        except (BadRow, ValueError) as error:
            raise ValueError(f"{path}, line {row.line}: {error}") from error
    return found


def _judgement_of(example: Example, row: Mapping[str, Any], judge: str) -> Judgement:
    if example.ranked:
        completions, ranks = example.ranked, tuple(int(rank) for rank in example.ranks)
    elif example.chosen is not None and example.rejected is not None:
        completions, ranks = (example.chosen, example.rejected), (0, 1)
    else:
        raise ValueError("neither chosen and rejected nor completions and ranks are there")
    grade = row.get("grade") or 0
    if not isinstance(grade, int) or abs(grade) > abs(WORSE):
        raise ValueError(f"grade {grade!r} is not a number from {WORSE} to {-WORSE}")
    answer = checked(Answer(ranks, grade, str(row.get("comment") or "")), len(completions))
    shown = row.get("order") or ()
    return Judgement(
        id=record_id(example.prompt, completions),
        source=str(row.get("source") or "import"),
        judge=str(row.get("judge") or judge),
        prompt=example.prompt,
        completions=completions,
        ranks=answer.ranks,
        grade=answer.grade,
        order=tuple(shown) if sorted(shown) == list(range(len(completions))) else (),
        comment=answer.comment,
    )


def gold_items(path: Path) -> list[Item]:
    """Items with a known answer from a file of pairs or rankings. Raises as ``read_judgements``."""
    items = {}
    for row in read_judgements(path, "gold"):
        item = Item(record_id("gold", row.prompt, row.completions), row.prompt, row.completions, row.ranks)
        items[item.id] = item
    return list(items.values())


def as_given(judgements: Iterable[Judgement], items: Sequence[Item]) -> tuple[list[Given], int]:
    """Imported judgements as labels of items with the same prompt and completions, in the items' order; and how many fit none."""
    places: dict[tuple[Messages, tuple[str, ...]], Item] = {(item.prompt, tuple(sorted(item.completions))): item for item in items}
    found, unknown = [], 0
    for judgement in judgements:
        item = places.get((judgement.prompt, tuple(sorted(judgement.completions))))
        if item is None or judgement.abstained:
            unknown += 1
            continue
        # Where the item's completions stand in the judgement; equal texts are taken in turn.
        left = list(range(len(item.completions)))
        at = [left.pop(next(n for n, i in enumerate(left) if judgement.completions[i] == text)) for text in item.completions]
        ranks = tuple(judgement.ranks[index] for index in at)
        grade = -judgement.grade if at == [1, 0] else judgement.grade
        order = tuple(at.index(index) for index in judgement.order)
        found.append(Given(item.id, judgement.judge.removeprefix(PERSON), ranks, grade, judgement.comment, order))
    return found, unknown
