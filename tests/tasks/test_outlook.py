"""Where a run stands among its planned stages, and the time left of all of it: told where every part is known, else not at all."""

import json
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter
from pydantic import BaseModel

from tasks import outlook, progress, provenance, registry, telling
from tasks.outlook import Outlook
from tasks.plan import PlanEntry
from tasks.registry import Outcome, RunRecord, StageRecord, Status
from tasks.store import Artifact
from tasks.telling import told

STAGES = {"base": 0.0, "sft": 100.0, "dpo": 50.0, "evaluate[dpo]": 20.0}


class NoConfig(BaseModel):
    """Of stages that are never called."""


def planned(*hits: str) -> list[PlanEntry]:
    return [PlanEntry(label, label, "hit" if label in hits else "miss", None, "", NoConfig(), {}) for label in STAGES]


def artifact(size: int = 1000) -> Artifact:
    return Artifact(kind="policy", digest="ab" * 32, size_bytes=size, n_files=1)


def run(number: int, status: Status = "finished", outcome: Outcome = "computed", **config: Any) -> RunRecord:
    stages = {label: StageRecord(key=f"{label}-1", artifact=artifact(), outcome=outcome, seconds=1.0) for label in STAGES}
    began = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    return RunRecord(name=f"toy-{number}", recipe="toy", config={"seed": number, **config}, started=began, status=status, stages=stages)


@pytest.fixture
def costs(home: Path) -> Path:
    """What the stages of the runs cost, as they left it."""
    folder = home / "store" / "costs"
    folder.mkdir(parents=True)
    for label, seconds in STAGES.items():
        spent = {"seconds": seconds, "generated_tokens": 0, "peak_bytes": 0, "device_peak_bytes": 0}
        (folder / f"{label}-1.json").write_text(json.dumps(spent))
    return folder


def at_sft(view: Outlook, size: int = 1000) -> Outlook:
    """After its first stage, in its second."""
    view.begin("base")
    view.end("base", "hit", size)
    view.begin("sft")
    return view


def test_the_rest_is_what_it_cost_the_last_time(costs: Path) -> None:
    view = at_sft(Outlook(planned("base"), [run(1)], run(2, "running")))
    assert view.left_s("sft", 60.0) == 60.0 + 50.0 + 20.0
    assert view.in_words("sft", 60.0) == "stage 2 of 4, about 2 min left of the run"
    # Without a pace of its own: what the stage cost then, less the time that it has taken.
    assert view.left_s("sft", None) == pytest.approx(100.0 + 50.0 + 20.0, abs=0.5)
    again = at_sft(Outlook(planned("base", "dpo"), [run(1)], run(2, "running")))
    assert again.left_s("sft", 60.0) == 60.0 + 20.0, "dpo is a hit"


@pytest.mark.parametrize(
    "earlier",
    [[], [run(1, "failed")], [run(1, epochs=3)], [run(1).model_copy(update={"recipe": "other"})]],
    ids=["none", "not finished", "other settings", "another recipe"],
)
def test_without_a_run_like_it_only_the_place_is_told(costs: Path, earlier: list[RunRecord]) -> None:
    view = at_sft(Outlook(planned("base"), earlier, run(2, "running")))
    assert view.left_s("sft", 60.0) is None
    assert view.in_words("sft", 60.0) == "stage 2 of 4"


def test_a_part_that_is_not_known_leaves_all_unknown(costs: Path) -> None:
    (costs / "dpo-1.json").unlink()
    assert at_sft(Outlook(planned("base"), [run(1)], run(2, "running"))).left_s("sft", 60.0) is None


def test_data_of_another_size_take_another_time(costs: Path) -> None:
    assert at_sft(Outlook(planned(), [run(1)], run(2, "running")), size=1090).left_s("sft", 60.0) == 130.0
    assert at_sft(Outlook(planned(), [run(1)], run(2, "running")), size=2000).left_s("sft", 60.0) is None


def test_a_run_that_leaves_its_plan_has_no_place(costs: Path) -> None:
    view = at_sft(Outlook(planned("base"), [run(1)], run(2, "running")))
    view.begin("surprise")
    assert (view.place("sft"), view.left_s("sft", 60.0), view.total) == ("", None, 0)
    twice = Outlook([*planned(), *planned()], [run(1)], run(2, "running"))
    twice.begin("base")
    assert twice.place("base") == "", "labels that are not unique say nothing"


# In a real flow


class Pipeline:
    """What stands for the MLflow run."""

    pipeline = name = "toy"
    url = None

    def __init__(self) -> None:
        self.tables = ["comparison"]


def heard(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(telling, "tell_line", lambda logger, text: lines.append(text))
    return lines


@pytest.mark.usefixtures("prefect_api")
def test_a_flow_is_planned_when_it_begins_and_summed_up_at_its_end(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, work = toy.load("toytasks.stages"), toy.load("toymodels.work")
    monkeypatch.setattr(progress, "FIRST_AFTER_S", 0.1)
    lines, places, ids = heard(monkeypatch), [], []

    @flow
    def two(steps: int, fails: bool = False) -> None:
        with registry.recording("toy", {"steps": steps}), told(Pipeline()):  # type: ignore[arg-type]
            ids.append(provenance.flow_run())
            data = stages.numbers(work.NumbersConfig(), seed=0)
            if (view := outlook.current()) is not None:  # not while it is planned
                places.append((view.place("numbers"), view.total, [entry.outcome for entry in view.planned.values()]))
            if fails:
                raise RuntimeError("the \x1b[2Jdisk\nis full")
            stages.train(work.TrainConfig(steps=steps, pause_s=0.3), data, seed=0)

    two(4)
    two(6)
    with pytest.raises(RuntimeError):
        two(6, fails=True)
    assert places == [("stage 1 of 2", 2, ["miss", "miss"]), ("stage 1 of 2", 2, ["hit", "miss"]), ("", 0, [])]
    with get_client(sync_client=True) as client:
        run = str(ids[0].id)
        shown = client.read_artifacts(flow_run_filter=FlowRunFilter(id={"any_": [run]}))  # type: ignore[arg-type]
    (whole,) = (one for one in shown if one.key == "progress")
    assert whole.data == 100 and str(whole.description).startswith("toy-1 finished after ")
    assert [toy.ran(), outlook.current()] == [["numbers", "train", "train"], None]
    rest = r"Table: artifact comparison of this run\. Why each stage was computed or not: posttrain explain toy-"
    for line, words in zip(
        (line for line in lines if line.startswith("toy-")),
        [
            rf"toy-1 finished after (?:\d+ min )?[\d.]+ s: 2 stages, 2 computed\. {rest}1",
            rf"toy-2 finished after (?:\d+ min )?[\d.]+ s: 2 stages, 1 computed, 1 hit\. {rest}2",
            rf"toy-3 failed after (?:\d+ min )?[\d.]+ s: 1 stage, 1 hit\. RuntimeError: the \[2Jdisk is full\. {rest}3",
        ],
        strict=True,
    ):
        assert re.fullmatch(words, line), line


def test_a_flow_inside_another_is_part_of_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = heard(monkeypatch)
    assert provenance.flow_run() is None
    with registry.recording("toy", {}), outlook.expecting(planned()), told(Pipeline()):  # type: ignore[arg-type]
        outer = outlook.current()
        with told(Pipeline()):  # type: ignore[arg-type]
            assert outlook.current() is outer and outer is not None
            outlook.begin("base")
            outlook.end("base", "hit", artifact())
    assert len(lines) == 1 and outer.outcomes == {"base": "hit"}


def test_what_is_known_without_a_run(home: Path, toy: ModuleType) -> None:
    store = home / "store"
    (store / "keydocs").mkdir(parents=True)
    document = {"stage": "sft", "config": {"steps": 4}, "sources": {}}
    assert outlook.cause_now("sft", "sft-1", document, "running").phrase("sft") == "for the first time"
    (store / "keydocs" / "sft-0.json").write_text(json.dumps({**document, "config": {"steps": 6}}))
    assert outlook.cause_now("sft", "sft-1", document, "running").phrase("sft") == "because sft.steps changed 6 -> 4"
    assert outlook.cause_now("sft", "sft-1", document, "hit").phrase("sft") == "from the store"
    (store / "records" / "keys").mkdir(parents=True)
    (store / "records" / "keys" / "sft-1").touch()
    assert outlook.cause_now("sft", "sft-1", document, "running").phrase("sft") == "because its artifact was missing or damaged"
