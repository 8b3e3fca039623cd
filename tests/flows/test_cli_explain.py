"""`posttrain explain`: the reason is looked for in the runs before, and named part by part."""

import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from flows.cli.explain import reasons
from flows.cli.progress import Display, _Lines
from tasks.home import home as output_folder
from tasks.registry import Outcome, RunRecord, StageRecord
from tasks.store import Artifact

POLICY = Artifact(kind="policy", digest="ab" * 32, size_bytes=1, n_files=1)


def run(number: int, key: str, outcome: Outcome = "computed", recipe: str = "tiny") -> RunRecord:
    stage = StageRecord(key=key, artifact=None if outcome in ("failed", "running") else POLICY, outcome=outcome, seconds=1)
    began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    return RunRecord(name=f"{recipe}-{number}", recipe=recipe, config={}, started=began, stages={"dpo": stage})


def document(key: str, beta: float, source: str = "1") -> None:
    folder = output_folder() / "store" / "keydocs"
    folder.mkdir(parents=True, exist_ok=True)
    content = {"stage": "dpo", "config": {"beta": beta}, "sources": {"models/losses/dpo.py": source}}
    (folder / f"{key}.json").write_text(json.dumps(content))


def why(now: RunRecord, *earlier: RunRecord) -> list[str]:
    return reasons("dpo", now.stages["dpo"], now.recipe, list(earlier))


def test_a_hit_names_the_run_that_had_it_last(home):
    assert why(run(3, "dpo-a", "hit"), run(1, "dpo-a"), run(2, "dpo-a", "hit")) == ["same key as in tiny-2"]
    assert why(run(3, "dpo-a", "hit")) == ["its result was in the store"]


def test_a_miss_says_what_changed_since_the_last_run_of_the_recipe(home):
    document("dpo-a", 0.1)
    document("dpo-b", 0.2, source="2")
    document("dpo-c", 0.5)
    earlier = [run(1, "dpo-a"), run(2, "dpo-c", recipe="gsm8k")]
    assert why(run(3, "dpo-b"), *earlier) == ["since tiny-1:", "config.beta: 0.1 -> 0.2", "source models/losses/dpo.py changed"]


@pytest.mark.parametrize(
    ("now", "earlier", "words"),
    [
        (run(1, "dpo-a"), [], "the first time"),
        (run(2, "dpo-a"), [run(1, "dpo-a")], "same key as in tiny-1, but the artifact was missing or damaged"),
        (run(2, "dpo-a", "resumed"), [run(1, "dpo-a", "failed")], "same key as in tiny-1, which did not finish it"),
        (run(2, "dpo-b"), [run(1, "dpo-a")], "its key differs from that in tiny-1, whose parts are not kept any more"),
    ],
)
def test_other_reasons(home, now, earlier, words):
    assert why(now, *earlier) == [words]


# Log lines between the bars


def lines(verbose: bool, *records: tuple[int, str]) -> str:
    console = Console(record=True, width=120, file=open("/dev/null", "w"))  # noqa: SIM115 - closed below
    handler = _Lines(Display(console), verbose)
    for level, text in records:
        if level >= handler.level:
            handler.emit(logging.LogRecord("prefect", level, "", 0, text, (), None))
    console.file.close()
    return console.export_text()


def test_warnings_are_shown_without_their_control_sequences_and_the_rest_on_request():
    said = (logging.INFO, "step 1"), (logging.WARNING, "memory \x1b[2Jis short"), (logging.ERROR, "Finished in state Failed")
    assert lines(False, *said).split("\n") == ["memory is short", ""]
    assert lines(True, *said).split("\n") == ["step 1", "memory is short", "Finished in state Failed", ""]
