"""A process that runs blocks over shards of rows. Started by ``data.blocks.workers``; it ends when its standard input does.

First line of its input: the path of the plan, ``{"seed", "sources", "steps": [{"label", "place", "settings", "folder"}, ...]}``. Every
further line is the path of a task, a JSON file as ``Task`` has it; its result is written to the path that the task names. On its output it
says, one JSON line each, ``{"at": block, "task": path}`` before a block begins, ``{"done": path}`` or ``{"failed": ...}``.
"""

import json
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.blocks.base import Block, Rejected, Row, Survey
from data.blocks.registry import load
from data.blocks.rows import Numbered, encode, read
from data.blocks.tally import BlockTally


@dataclass(frozen=True)
class Task:
    """One shard and what is to be done with it: drop what a survey decided against, pass it through blocks, describe it to a survey.

    ``drops``: row in the shard -> detail, of the survey ``dropper``. ``first`` to ``last`` (excluded) are the blocks by number.
    ``survey`` is the number of the survey that rows are described to. Numbers are -1 where there is none.
    """

    shard: int
    rows: str
    kept: str
    values: str
    rejected: str
    result: str
    dropper: int
    drop_reason: str
    drops: dict[str, str]
    first: int
    last: int
    survey: int


class Worker:
    """The blocks of one process, made when they are first needed."""

    def __init__(self, plan: dict[str, Any], say: Callable[[dict[str, Any]], None]) -> None:
        self.steps: list[dict[str, Any]] = plan["steps"]
        self.sources: list[str] = plan["sources"]
        self.seed = plan["seed"]
        self.say = say
        self._blocks: dict[int, Any] = {}

    def run(self, task: Task) -> None:
        """Do one task; writes the rows that are left, the rejected ones, the survey's values, and the tallies."""
        rows = [(numbered, numbered.row) for numbered in read(Path(task.rows))]
        tallies: dict[int, BlockTally] = {}
        with open(task.rejected, "w", encoding="utf-8", errors="backslashreplace") as listing:
            for number, judge in self._judges(task, len(rows)):
                tallies[number] = BlockTally()
                draw = random.Random(f"{self.seed}:{number}:{task.shard}")
                rows = list(self._passed(rows, number, judge, tallies[number], draw, listing.write))
        with open(task.kept, "wb") as kept:
            kept.writelines(_line(numbered, row) for numbered, row in rows)
        if task.survey >= 0:
            self._describe(task, [row for _, row in rows])
        counts = {str(number): tally.to_plain() for number, tally in tallies.items()}
        Path(task.result).write_text(json.dumps({"shard": task.shard, "rows": len(rows), "tallies": counts}), encoding="utf-8")

    def _judges(self, task: Task, n_rows: int) -> Iterator[tuple[int, Callable[[int, Row], Row | Rejected]]]:
        """What each row has to pass, in order: a survey's decision, then blocks."""

        def decided(position: int, row: Row) -> Row | Rejected:
            detail = task.drops.get(str(position))
            return row if detail is None else Rejected(row, task.drop_reason, detail)

        if task.dropper >= 0:
            yield task.dropper, decided
        for number in range(task.first, task.last):
            self.say({"at": number, "task": task.rows})
            block: Block = self._block(number)
            yield number, lambda position, row, block=block: block(row)

    def _passed(
        self,
        rows: list[tuple[Numbered, Row]],
        number: int,
        judge: Callable[[int, Row], Row | Rejected],
        tally: BlockTally,
        draw: random.Random,
        write: Callable[[str], Any],
    ) -> Iterator[tuple[Numbered, Row]]:
        label = getattr(self._blocks.get(number), "label", None)
        for position, (numbered, row) in enumerate(rows):
            if label is not None:
                tally.labels[label(row)] += 1
            after = judge(position, row)
            tally.note(row, after, draw)
            if isinstance(after, Rejected):
                write(self._listed(number, after) + "\n")
            else:
                yield numbered, after

    def _listed(self, number: int, rejected: Rejected) -> str:
        row = rejected.row
        place = {"source": self.sources[row.source], "file": row.file, "line": row.line}
        why = {"block": self.steps[number]["label"], "reason": rejected.reason, "detail": rejected.detail}
        return json.dumps(place | why, ensure_ascii=False)

    def _describe(self, task: Task, rows: list[Row]) -> None:
        self.say({"at": task.survey, "task": task.rows})
        survey: Survey = self._block(task.survey)
        values = np.ascontiguousarray(survey.describe(rows)) if rows else np.empty(0, survey.values)
        assert len(values) == len(rows), f"{task.survey} gives {len(values)} values for {len(rows)} rows"
        Path(task.values).write_bytes(values.astype(survey.values.base, copy=False).tobytes())

    def _block(self, number: int) -> Any:
        if number not in self._blocks:
            self._blocks[number] = built(self.steps[number])
        return self._blocks[number]


def built(step: dict[str, Any]) -> Any:
    """The block of a step, with what was prepared for it."""
    block_class, settings = load(step["place"], step["settings"])
    block = block_class(settings)
    if hasattr(block, "load"):
        block.load(Path(step["folder"]))
    return block


def _line(numbered: Numbered, row: Row) -> bytes:
    return encode(numbered if row is numbered.row else Numbered(numbered.number, True, row))


def main() -> None:
    """Serve tasks until the input ends."""
    # What a library prints must not come between the messages.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=channel, flush=True)

    worker: Worker | None = None
    for line in sys.stdin:
        path = Path(line.rstrip("\n"))
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if worker is None:
                worker = Worker(content, say)
                continue
            task = Task(**content)
            worker.run(task)
            say({"done": task.result})
        except Exception as error:
            kinds = [kind.__name__ for kind in type(error).__mro__]
            say({"failed": {"kinds": kinds, "message": str(error), "traceback": traceback.format_exc()}})


if __name__ == "__main__":
    main()
