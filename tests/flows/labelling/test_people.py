"""A flow that waits for people, on a real Prefect API: it pauses, goes on by itself, and loses no label when it is killed."""

import contextvars
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.exceptions import CancelledRun
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled

from data.judgements import Candidates, Judgement
from data.labelling.records import Answer
from data.labelling.store import LabelStore
from data.labelling.waiting import WaitingRun, note_run, runs, waiting_runs
from data.records import Message
from data.tables import read_table, write_table
from flows import people
from flows.labelling import pausing, tasks
from flows.labelling.waking import Waker, living_runs
from flows.people import await_labels
from models.configs.labelling import LabellingConfig
from tasks import registry
from tasks.plan import Pending
from tasks.stage import planning
from tasks.store import Artifact, Store

ROOT = Path(__file__).resolve().parents[3]
CONFIG = LabellingConfig()


def stored(home: Path, count: int = 3) -> Artifact:
    """An artifact with candidates."""
    store = Store(home / "store")
    staging = store.new_staging()
    folder = staging / "out"
    folder.mkdir()
    rows = [Candidates(f"c{n}", "test", (Message("user", f"Question {n}?"),), ("yes", "no"), ("a", "b")) for n in range(count)]
    write_table(folder / "candidates.parquet", rows)
    artifact = store.put(folder, "candidates")
    store.discard(staging)
    return artifact


@pytest.fixture
def candidates(home: Path) -> Artifact:
    return stored(home)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(people, "LOOK_EVERY_S", 0.05)
    monkeypatch.setattr(pausing, "ASK_EVERY_S", 0.1)


@flow(name="waiting")
def waiting(candidates: Artifact, config: LabellingConfig = CONFIG) -> Artifact:
    with registry.recording("waiting", {}, 0):
        return await_labels(candidates, config, seed=0)


def the_task(home: Path) -> LabelStore:
    (file,) = (home / "labels").glob("*.db")
    return LabelStore(file)


def label(store: LabelStore, count: int = 99, annotator: str = "ada") -> None:
    store.add_annotator(annotator, f"token of {annotator}", by_link=False)
    while count and (position := store.next_open(annotator)):
        place = store.place(annotator, position)
        assert place is not None
        store.label(annotator, position, Answer((0, 1), 2), form=f"{annotator}-{position}")
        count -= 1


def wait_for(condition: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)
    return found


def paused_run(home: Path) -> WaitingRun | None:
    files = list((home / "labels").glob("*.db"))
    return next(iter(waiting_runs(LabelStore(files[0]))), None) if files else None


def state_of(run: WaitingRun) -> str:
    with get_client(sync_client=True) as client:
        state = client.read_flow_run(UUID(run.flow_run)).state
        assert state is not None and state.name is not None
        return state.name


@pytest.fixture
def meanwhile(home: Path) -> Iterator[Callable[..., None]]:
    """meanwhile(do): calls do(run, task) in a thread as soon as a run waits; what it raises fails the test."""
    faults: list[BaseException] = []
    threads: list[threading.Thread] = []

    def start(do: Callable[[WaitingRun, LabelStore], None]) -> None:
        def work() -> None:
            try:
                do(wait_for(lambda: paused_run(home)), the_task(home))
            except BaseException as fault:  # a thread's faults are raised by the test
                faults.append(fault)
                if run := paused_run(home):
                    with get_client(sync_client=True) as client:
                        client.set_flow_run_state(UUID(run.flow_run), Cancelled(), force=True)

        threads.append(threading.Thread(target=contextvars.copy_context().run, args=(work,)))
        threads[0].start()

    yield start
    for thread in threads:
        thread.join(timeout=60)
    if faults:
        raise faults[0]


def judgements(home: Path, artifact: Artifact) -> list[Judgement]:
    return read_table(Store(home / "store").path(artifact) / "judgements.parquet", Judgement)


@pytest.mark.usefixtures("prefect_api")
class TestWaiting:
    def test_the_run_pauses_and_goes_on_by_itself_when_enough_labels_are_in(self, home, candidates, meanwhile):
        states = []

        def people_at_work(run: WaitingRun, store: LabelStore) -> None:
            states.append(state_of(run))
            label(store, 2)
            time.sleep(0.5)
            states.append(state_of(run))
            label(store)

        meanwhile(people_at_work)
        result = waiting(candidates)
        assert states == ["Paused", "Paused"]
        assert [(row.id, row.judge, row.ranks, row.grade) for row in judgements(home, result)] == [
            (f"c{n}", "person:ada", (0, 1), 2) for n in range(3)
        ]
        (run,) = runs(the_task(home))
        assert run.state == "done" and state_of(run) == "Completed" and run.name == "waiting-1"
        with get_client(sync_client=True) as client:
            history = [state.name for state in client.read_flow_run_states(UUID(run.flow_run))]
            links = [artifact for artifact in client.read_artifacts() if artifact.key == the_task(home).name]
        assert history.count("Paused") == 1 and history.index("Paused") < len(history) - 1 - history[::-1].index("Running")
        assert "http://127.0.0.1:4300" in str(links[0].data) and "posttrain label waiting-1" in str(links[0].description)
        report = json.loads((Store(home / "store").path(result) / "agreement.json").read_text())
        assert report["labels"] == 3 and report["annotators"]["ada"]["labels"] == 3

    def test_with_enough_labels_it_does_not_pause_and_the_same_labels_are_a_hit(self, home, candidates):
        table = read_table(Store(home / "store").path(candidates) / "candidates.parquet", Candidates)
        store = tasks.register(table, CONFIG, 0)
        label(store)
        first = waiting(candidates)
        assert runs(store) == [] and waiting(candidates) == first
        assert [run.stages["people_labels"].outcome for run in registry.runs()] == ["computed", "hit"]
        place = store.place("ada", 1)
        store.label("ada", 1, Answer((1, 0), -1), form="changed")
        changed = waiting(candidates)
        assert place is not None and changed.digest != first.digest
        store.label("ada", 1, Answer((0, 1), 2), form="back again")
        assert waiting(candidates) == first  # keyed by what the labels say

    def test_a_run_that_is_resumed_by_hand_goes_on_with_what_is_there_but_not_with_nothing(self, home, candidates, meanwhile):
        seen = []

        def impatient_person(run: WaitingRun, store: LabelStore) -> None:
            with get_client(sync_client=True) as client:
                client.resume_flow_run(UUID(run.flow_run))
                wait_for(lambda: [s.name for s in client.read_flow_run_states(UUID(run.flow_run))].count("Paused") == 2)
                seen.append(state_of(run))
                label(store, 1)
                client.resume_flow_run(UUID(run.flow_run))

        meanwhile(impatient_person)
        assert len(judgements(home, waiting(candidates))) == 1 and seen == ["Paused"]

    def test_a_run_that_is_cancelled_while_it_waits_ends(self, home, candidates, meanwhile):
        def cancel(run: WaitingRun, store: LabelStore) -> None:
            with get_client(sync_client=True) as client:
                client.set_flow_run_state(UUID(run.flow_run), Cancelled(), force=True)

        meanwhile(cancel)
        with pytest.raises(CancelledRun, match="while it waited for labels"):
            waiting(candidates)

    def test_patience_ends(self, home, candidates):
        with pytest.raises(TimeoutError, match="0 of 3 labels"):
            waiting(candidates, LabellingConfig(patience_h=0.5 / 3600))

    def test_suspending_needs_a_deployment(self, home, candidates):
        with pytest.raises(ValueError, match="has no deployment"):
            waiting(candidates, LabellingConfig(while_waiting="suspend"))

    def test_a_run_killed_while_it_waits_is_started_again_on_the_same_labels(self, home, candidates):
        script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from prefect import flow
from flows.people import await_labels
from models.configs.labelling import LabellingConfig
from tasks.store import Artifact

@flow
def waiting(config: LabellingConfig):
    await_labels(Artifact.model_validate_json({candidates.model_dump_json()!r}), config, seed=0)

waiting(LabellingConfig())
"""
        environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value()), "POSTTRAIN_HOME": str(home)}
        killed = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, env=environment, stderr=subprocess.DEVNULL)
        try:
            run = wait_for(lambda: paused_run(home))
            label(the_task(home), 2)
        finally:
            os.kill(killed.pid, signal.SIGKILL)
            killed.wait()
        assert state_of(run) == "Paused"  # nobody told Prefect
        store = the_task(home)
        label(store)
        assert len(judgements(home, waiting(candidates))) == 3
        # Woken, it would be Running for ever.
        assert living_runs(store) == [] and state_of(run) == "Paused"

    def test_the_waker_resumes_a_run_when_enough_labels_are_in_and_an_api_that_is_gone_does_no_harm(self, home, candidates, caplog):
        @flow(name="sleeping")
        def sleeping() -> str:
            store = tasks.register(read_table(Store(home / "store").path(candidates) / "candidates.parquet", Candidates), CONFIG, 0)
            note_run(store, WaitingRun("00000000-0000-0000-0000-000000000000", "gone", "http://127.0.0.1:9/api", "paused"))
            paused = pausing.pause(store, "sleeping", 1.0)
            waker = Waker(store, look_every_s=0.1)
            waker.start()
            try:
                time.sleep(0.4)
                before = state_of(paused.run)
                label(store)
                waker.look()
                wait_for(paused.was_resumed)
            finally:
                waker.stop()
            return before

        assert sleeping() == "Paused"
        assert "gone could not be told" in caplog.text and "sleeping goes on" in caplog.text


# Without Prefect


def test_a_plan_waits_for_nobody_and_shows_a_hit_when_the_labels_are_there(home, candidates):
    pending = Pending("sample", "sample", "candidates")
    with planning() as plan:
        await_labels(pending, CONFIG, seed=0)  # type: ignore[arg-type]
        await_labels(candidates, CONFIG, seed=0)
    assert [entry.outcome for entry in plan.entries] == ["miss", "miss"] and not (home / "labels").exists()
    assert "input candidates will be made by sample" in plan.entries[0].reason
    assert "input labels will be made by people" in plan.entries[1].reason


def test_outside_of_a_flow_it_only_waits(home, candidates):
    table = read_table(Store(home / "store").path(candidates) / "candidates.parquet", Candidates)
    thread = threading.Timer(0.3, lambda: label(tasks.register(table, CONFIG, 0)))
    thread.start()
    people._wait(tasks.register(table, CONFIG, 0), CONFIG, "people_labels")
    thread.join()
    assert tasks.register(table, CONFIG, 0).progress().enough


def test_candidates_without_a_choice_are_refused(home):
    same = [Candidates("c", "test", (Message("user", "?"),), ("a", "a"), ("w", "w"))]
    with pytest.raises(ValueError, match="none of 1 sets of candidates holds two different completions"):
        tasks.register(same, CONFIG, 0)


def test_guidelines_and_known_answers_come_from_files(home, candidates, tmp_path):
    table = read_table(Store(home / "store").path(candidates) / "candidates.parquet", Candidates)
    (tmp_path / "guide.txt").write_text("Be strict.")
    (tmp_path / "gold.jsonl").write_text('{"prompt": "q", "chosen": "right", "rejected": "wrong"}\n')
    config = LabellingConfig(guidelines=str(tmp_path / "guide.txt"), gold=str(tmp_path / "gold.jsonl"), gold_share=0.5)
    store = tasks.register(table, config, 0)
    assert store.settings().guidelines == "Be strict." and len(store.items()) == 4 and store.progress().wanted == 3
    with pytest.raises(ValueError, match="guidelines='/nowhere' cannot be read"):
        tasks.register(table, LabellingConfig(guidelines="/nowhere"), 0)


def test_a_name_leads_to_its_task(home, candidates):
    file = Store(home / "store").path(candidates) / "candidates.parquet"
    store = tasks.find(str(file))
    assert tasks.find(str(file.parent)).path == store.path == tasks.find(store.name).path == tasks.find(candidates.digest[:8]).path
    with registry.recording("tuning", {}, 0) as live:
        registry.record_stage(live, "sample", None, candidates, "computed", 0.0)
    for name in ("tuning", "tuning-1", "tuning/sample", "latest"):
        assert tasks.find(name).path == store.path
    note_run(store, WaitingRun("x", "tuning-1", "", "done"))
    assert tasks.find("tuning").path == store.path
    for name in ("nothing", "tuning/other"):
        with pytest.raises(ValueError, match=rf"'{name}' has nothing to label.*{re.escape(store.name)}"):
            tasks.find(name)


def test_the_config_shows_in_a_form_and_refuses_what_cannot_be():
    schema = str(LabellingConfig.model_json_schema())
    assert "anyOf" not in schema and all(field.description for field in LabellingConfig.model_fields.values())
    for wrong in ({"overlap_share": 1.5}, {"overlap_annotators": 1}, {"gold_share": 1.0}, {"labels": -1}, {"while_waiting": "sleep"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            LabellingConfig(**wrong)
