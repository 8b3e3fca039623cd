"""Labels of people of all labelling tasks, as files of pairs that curation reads: new ones, and those that the champion knew.

HOME/retrain/labels/DIGEST/labels.jsonl   every label, as the tasks have it: what the next retraining compares with
HOME/retrain/labels/DIGEST/new.jsonl      pairs, the majority of people deciding; an item with a new label is new, with all of its pairs
HOME/retrain/labels/DIGEST/old.jsonl      the other pairs
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from data.judgements import Candidates
from data.labelling.judgements import judgements_of
from data.labelling.records import Given
from data.labelling.snapshot import read_labels, write_labels
from data.labelling.store import LabelStore
from data.people_pairs import of_labels
from flows.labelling import tasks
from tasks.home import home
from tasks.lineage import Step
from tasks.store import Store

EVERY = "*"
Name = tuple[str, str, tuple[int, ...], int]  # item, annotator, ranks, grade: the same label, the same name


@dataclass(frozen=True)
class Labels:
    """The labels that there are."""

    count: int
    new: int
    tasks: int
    new_file: Path | None
    old_file: Path | None
    digest: str

    @property
    def files(self) -> list[Path]:
        """The files of pairs that are not empty."""
        return [path for path in (self.new_file, self.old_file) if path is not None]

    @property
    def old_files(self) -> list[Path]:
        """That of old pairs, if there are any."""
        return [self.old_file] if self.old_file is not None else []


def folder() -> Path:
    """Where the files lie."""
    return home() / "retrain" / "labels"


def known_labels(steps: Iterable[Step]) -> set[Name]:
    """Every label that the stages which led to a policy were given: by people during a run, or as files of an earlier retraining."""
    store = Store(home() / "store")
    places = []
    for step in steps:
        if step.stage == "people_labels":
            places.append(store.folder(step.input("labels")))
        if step.stage == "curate":
            places += [Path(source["name"]).parent for source in step.document["config"]["sources"] if source["kind"] == "file"]
    return {name_of(label) for place in places if (place / "labels.jsonl").is_file() for label in read_labels(place)}


def name_of(label: Given) -> Name:
    """What makes a label the one it is; another answer by the same person is another label."""
    return label.item, label.annotator, label.ranks, label.grade


def collect(names: Sequence[str], known: set[Name]) -> Labels:
    """The labels of the named tasks, written as files.

    Raises:
        ValueError: a name means no labelling task.
    """
    stores = _stores(names)
    given = {name_of(label): label for store in stores for label in store.given() if label.ranks and not label.gold_ranks}
    fresh = {label.item for name, label in given.items() if name not in known}
    pairs = [row for store in stores for row in _pairs(store)]
    parts = {"new": [row for row in pairs if row["item"] in fresh], "old": [row for row in pairs if row["item"] not in fresh]}
    digest = hashlib.sha256(json.dumps([sorted(map(repr, given)), sorted(fresh)]).encode()).hexdigest()[:16]
    files = _written(folder() / digest, given.values(), parts) if given else {}
    return Labels(len(given), len(given.keys() - known), len(stores), files.get("new"), files.get("old"), digest)


def _stores(names: Sequence[str]) -> list[LabelStore]:
    found = {store.name: store for name in names for store in (tasks.known() if name == EVERY else [tasks.find(name)])}
    return list(found.values())


def _pairs(store: LabelStore) -> list[dict[str, object]]:
    """Rows of pairs on whose better answer most people agree; ties have none."""
    asked = [Candidates(item.id, store.name, item.prompt, item.completions, ()) for item in store.items() if not item.gold_ranks]
    rows: list[dict[str, object]] = []
    for one in of_labels(judgements_of(asked, store.given())):
        if votes := sum(one.votes):
            texts = (one.pair.chosen, one.pair.rejected) if votes > 0 else (one.pair.rejected, one.pair.chosen)
            prompt = [asdict(message) for message in one.pair.prompt]
            rows.append({"prompt": prompt, "chosen": texts[0], "rejected": texts[1], "item": one.item})
    return rows


def _written(place: Path, labels: Iterable[Given], parts: dict[str, list[dict[str, object]]]) -> dict[str, Path]:
    """The files of pairs that are not empty. The folder appears whole: its name is the digest of what is in it."""
    if not place.exists():
        folder().mkdir(parents=True, exist_ok=True)
        staging = place.with_name(f".{uuid.uuid4().hex}")
        staging.mkdir()
        write_labels(staging, labels)
        for part, rows in parts.items():
            lines = (json.dumps(row, ensure_ascii=False) for row in rows)
            (staging / f"{part}.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", errors="backslashreplace")
        try:
            os.rename(staging, place)
        except OSError:
            shutil.rmtree(staging)
            if not place.exists():  # else another process was faster, with the same content
                raise
    return {part: place / f"{part}.jsonl" for part, rows in parts.items() if rows}
