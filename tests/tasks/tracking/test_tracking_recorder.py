"""Journals and the recorder: nothing lost, nothing out of order, nothing raised into the flow, whatever the store does."""

import json
import math
import os
import threading
import time
from pathlib import Path

import pytest

from tasks import owner, recorder
from tasks.journal import Point, Tail, read_points
from tasks.provenance import clean_name, config_params
from tasks.recorder import AddPoints, AddText, CloseRun, OpenRun, Recorder, Refused, Unreachable, store_undelivered, undelivered


def lines(*steps: int, name: str = "train/loss") -> str:
    return "".join(json.dumps({"step": step, "time": 100.0 + step, "metrics": {name: step / 2}}) + "\n" for step in steps)


def steps(points: list[Point]) -> list[int]:
    return [point.step for point in points]


def text(content: str, ref: str = "run") -> AddText:
    return AddText(ref=ref, path="a.txt", text=content)


class Store:
    """Takes records, or raises what it is told to."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.taken: list[recorder.Record] = []
        self.up = threading.Event()
        self.up.set()

    def deliver(self, record: recorder.Record) -> None:
        if not self.up.is_set():
            raise Unreachable("down")
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append(record)

    def prepare(self) -> None:
        if not self.up.is_set():
            raise Unreachable("down")

    def texts(self) -> list[str]:
        return [record.text for record in self.taken if isinstance(record, AddText)]


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(recorder, "FIRST_RETRY_S", 0.01)


# Journals


def test_a_journal_is_read_as_it_grows(tmp_path):
    path = tmp_path / "journal.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text(lines(1))
    assert tail.read() == [Point("train/loss", 0.5, 1, 101_000)]
    half = lines(2)
    with path.open("a") as file:
        file.write(half[:20])
    assert tail.read() == []
    with path.open("a") as file:
        file.write(half[20:] + lines(3))
    assert steps(tail.read()) == [2, 3]
    assert tail.read() == []


def test_a_journal_that_was_rewound_is_read_again(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(lines(1, 2, 3, 4))
    tail = Tail(path)
    tail.read()
    replacement = tmp_path / "new"
    # As long as before, so that the length does not tell: the file is another one.
    replacement.write_text(lines(1, 2, 7, 8))
    os.replace(replacement, path)
    assert steps(tail.read()) == [1, 2, 7, 8]
    path.write_text(lines(1))
    assert steps(tail.read()) == [1]


def test_lines_that_are_no_reports_are_passed_over(tmp_path):
    path = tmp_path / "journal.jsonl"
    path.write_text(lines(1) + '{"step": 2, "ti\n[]\n{"step": 1}\n\xff\n' + lines(3) + '{"step": 4, "time": 1, "metrics": {"a": 1')
    assert steps(read_points(path)) == [1, 3]


# The recorder


def test_records_arrive_in_order():
    store = Store()
    record = Recorder(store.deliver, store.prepare)
    for number in range(50):
        record.put(text(str(number)))
    assert record.close(60) == []
    assert store.texts() == [str(number) for number in range(50)]


def test_a_store_that_is_down_delays_nobody_and_loses_nothing(caplog):
    store = Store()
    store.up.clear()
    record = Recorder(store.deliver, store.prepare)
    began = time.monotonic()
    record.put(text("a"), text("b"))
    assert time.monotonic() - began < 1
    assert not record.wait(0.1)
    store.up.set()
    assert record.close(60) == []
    assert store.texts() == ["a", "b"]
    said = [entry.message for entry in caplog.records]
    assert len(said) == 2 and "cannot be reached" in said[0] and "again" in said[1]


def test_what_is_refused_or_fails_by_a_bug_is_said_and_does_not_block_the_rest(caplog):
    store = Store(Refused("its run was deleted"), ZeroDivisionError("bug"))
    record = Recorder(store.deliver, store.prepare)
    record.put(text("a"), text("b"), text("c"))
    assert record.close(60) == []
    assert store.texts() == ["c"]
    assert "its run was deleted" in caplog.text and "ZeroDivisionError" in caplog.text


def test_what_is_not_delivered_in_time_is_handed_back():
    store = Store()
    record = Recorder(store.deliver, store.prepare)
    record.put(text("a"))
    record.wait(60)
    store.up.clear()
    record.put(text("b"), text("c"))
    began = time.monotonic()
    assert record.close(0.2) == [text("b"), text("c")]
    assert time.monotonic() - began < 2


def test_a_followed_journal_is_forwarded_while_it_is_written(tmp_path):
    store = Store()
    record = Recorder(store.deliver, store.prepare, poll_s=0.02)
    path = tmp_path / "journal.jsonl"
    record.follow("run", path)
    path.write_text(lines(1))
    end = time.monotonic() + 5
    while not store.taken and time.monotonic() < end:
        time.sleep(0.01)
    assert [steps(entry.points) for entry in store.taken if isinstance(entry, AddPoints)] == [[1]]
    record.close(1)


@pytest.mark.parametrize("moved", [False, True])
def test_the_end_of_a_journal_is_read_before_the_run_is_closed(tmp_path, moved):
    store = Store()
    record = Recorder(store.deliver, store.prepare, poll_s=60)
    path = tmp_path / "journal.jsonl"
    path.write_text(lines(1, 2))
    record.follow("run", path)
    place = path.rename(tmp_path / "history.jsonl") if moved else path
    record.unfollow("run", place if moved else None)
    place.unlink()
    closing = CloseRun(ref="run", status="FINISHED", ended_ms=1, tags={})
    record.put(closing)
    assert record.close(60) == []
    points = [Point("train/loss", 0.5, 1, 101_000), Point("train/loss", 1.0, 2, 102_000)]
    assert store.taken == [AddPoints(ref="run", points=points), closing]


def test_a_journal_that_cannot_be_read_is_said(tmp_path, caplog):
    store = Store()
    record = Recorder(store.deliver, store.prepare)
    record.follow("run", tmp_path)
    record.unfollow("run")
    assert record.close(60) == []
    assert "cannot be read" in caplog.text


# The outbox


def test_the_outbox_keeps_every_kind_of_record_as_it_was(tmp_path):
    records: list[recorder.Record] = [
        OpenRun(ref="a", name="sft", parent=None, started_ms=5, tags={"x": "ü"}, params={}),
        AddPoints(ref="a", points=[Point("train/loss", math.inf, 1, 1), Point("train/loss", 0.1, 2, 2)]),
        text("line\nline", ref="a"),
        CloseRun(ref="a", status="KILLED", ended_ms=9, tags={}, files=[Path("/x/report.json")]),
    ]
    path = store_undelivered(tmp_path / "outbox", records)
    with undelivered(path) as found:
        assert found == records
        with undelivered(path) as second:
            assert second == []
    assert not path.exists()


def test_a_loss_that_is_not_a_number_survives_the_outbox(tmp_path):
    path = store_undelivered(tmp_path, [AddPoints(ref="a", points=[Point("train/loss", math.nan, 1, 1)])])
    with undelivered(path) as (found,):
        assert isinstance(found, AddPoints) and math.isnan(found.points[0].value)


def test_the_outbox_stays_if_its_delivery_fails(tmp_path):
    path = store_undelivered(tmp_path, [text("a")])
    with pytest.raises(Unreachable), undelivered(path):
        raise Unreachable("down")
    assert path.exists()


# Owners and params


def test_a_process_owns_what_it_claimed_until_it_ends(tmp_path):
    mine = owner.claim(tmp_path)
    assert owner.claim(tmp_path) == mine
    (tmp_path / "somebody-1-0").touch()
    (tmp_path / ".being-made").touch()
    assert owner.dead_owners(tmp_path) == ["somebody-1-0"]
    owner.forget(tmp_path, ["somebody-1-0"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [".being-made", mine]


def test_a_config_becomes_flat_params():
    config = {"optimizer": {"lr": 1e-4, "betas": (0.9, 0.99)}, "data": {}, "on": True, "none": None, "long": "x" * 9000, "a[0]": 1}
    assert config_params(config) == {
        "optimizer.lr": "0.0001",
        "optimizer.betas": "[0.9, 0.99]",
        "data": "{}",
        "on": "True",
        "none": "None",
        "long": "x" * 6000,
        "a_0_": "1",
    }
    assert config_params({}) == {}


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [("eval/accuracy", "eval/accuracy"), ("eval/größe@1", "eval/gr__e_1"), ("../a", "___a"), ("/a//b", "_a__b"), (".", "_"), ("", "_")],
)
def test_a_name_that_mlflow_refuses_is_made_one_that_it_takes(name, cleaned):
    assert clean_name(name) == cleaned
