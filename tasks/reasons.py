"""Why a stage was computed, or was not, in the light of the runs before: what `posttrain explain` and the log of a run say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tasks.key import differences, load_document
from tasks.registry import RunRecord, StageRecord
from tasks.wording import one_line

MOST_CHANGES = 3  # in one line
LONGEST_CHANGE = 120


@dataclass(frozen=True)
class Cause:
    """Why a stage had its outcome; `run` is the earlier run that it is compared with.

    stored: its result was in the store; of a run, if one is known. lost: computed before, and the artifact was missing or damaged.
    begun: a run began it and did not finish. changed: parts of its key are different. forgotten: they are, and nobody knows which any more.
    """

    kind: Literal["stored", "lost", "begun", "changed", "forgotten", "first"]
    run: str = ""
    changes: Sequence[str] = ()
    maker: str = ""  # of a result that was in the store: the run that computed it

    def lines(self) -> list[str]:
        """In words, a line for each change."""
        if self.kind == "changed":
            return [f"since {self.run}:" if self.run else "since its last call:", *self.changes]
        return [
            {
                "stored": f"same key as in {self.run}" if self.run else "its result was in the store",
                "lost": f"same key as in {self.run or 'an earlier run'}, but the artifact was missing or damaged",
                "begun": f"same key as in {self.run}, which did not finish it",
                "forgotten": f"its key differs from that in {self.run}, whose parts are not kept any more",
                "first": "the first time",
            }[self.kind]
        ]

    def phrase(self, stage: str) -> str:
        """In the middle of a sentence: `because sft.learning_rate changed 0.0001 -> 0.0002 since quickstart-1`."""
        if self.kind == "changed":
            shown = [_changed(stage, change) for change in self.changes[:MOST_CHANGES]]
            more = [f"{len(self.changes) - len(shown)} more"] if len(self.changes) > len(shown) else []
            return f"because {' and '.join([', '.join(shown), *more])}" + (f" since {self.run}" if self.run else "")
        return {
            "stored": f"made by {self.maker or self.run}" if self.maker or self.run else "from the store",
            "lost": f"because its artifact{f', made in {self.run},' if self.run else ''} was missing or damaged",
            "begun": f"begun and not finished by {self.run}",
            "forgotten": f"because its key differs from that in {self.run}",
            "first": "for the first time",
        }[self.kind]


def cause_of(label: str, stage: StageRecord, recipe: str, earlier: Sequence[RunRecord], keydocs: Path) -> Cause:
    """Why a stage had the outcome that it had, in the light of the runs before it (the oldest first)."""
    having = [(run, other) for run in earlier for other in run.stages.values() if other.key == stage.key and other.artifact]
    made = having[-1][0].name if having else ""
    if stage.outcome == "hit":
        makers = [run.name for run, other in having if other.outcome in ("computed", "resumed")]
        return Cause("stored", made, maker=makers[-1] if makers else "")
    begun = next((run for run in reversed(earlier) if any(other.key == stage.key for other in run.stages.values())), None)
    if made:
        return Cause("lost", made)
    return Cause("begun", begun.name) if begun else _changes(label, stage, recipe, earlier, keydocs)


def _changes(label: str, stage: StageRecord, recipe: str, earlier: Sequence[RunRecord], keydocs: Path) -> Cause:
    """What is different from the last time that a stage of this label ran, in the same recipe if it can be."""
    before = [run for run in earlier if label in run.stages and run.stages[label].key]
    if not before:
        return Cause("first")
    last = max(before, key=lambda run: (run.recipe == recipe, run.started))
    old, new = (load_document(keydocs, key) if key else None for key in (last.stages[label].key, stage.key))
    if old is None or new is None:
        return Cause("forgotten", last.name)
    return Cause("changed", last.name, differences(old, new))


def _changed(stage: str, change: str) -> str:
    """`config.learning_rate: 0.0001 -> 0.0002` as `sft.learning_rate changed 0.0001 -> 0.0002`; other changes as they are."""
    name, colon, values = change.partition(": ")
    said = f"{stage}.{name.removeprefix('config.')} changed {values}" if colon and name.startswith("config.") else change
    return one_line(said, LONGEST_CHANGE)
