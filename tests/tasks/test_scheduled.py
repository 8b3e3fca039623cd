"""Slots of a schedule: one holder each, whoever is faster, and for good."""

import multiprocessing
import threading
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from tasks.scheduled import claim, folder, holder, newest

AT = datetime(2026, 11, 22, 2, tzinfo=UTC)


def _claim_all(own: str, start: threading.Event, told: multiprocessing.Queue) -> None:
    start.wait()
    told.put([claim("retrain/nightly", AT + timedelta(hours=hour), own).flow_run == own for hour in range(50)])


def test_of_several_processes_one_gets_each_slot(home: Path) -> None:
    context = multiprocessing.get_context("fork")
    start, told = context.Event(), context.Queue()
    workers = [context.Process(target=_claim_all, args=(f"run {n}", start, told)) for n in range(4)]
    for worker in workers:
        worker.start()
    start.set()
    won = [told.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(timeout=60)
    assert [sum(row[hour] for row in won) for hour in range(50)] == [1] * 50
    assert len(list(folder("retrain/nightly").iterdir())) == 50  # and nothing is left beside the records


def test_the_holder_may_come_back_and_another_may_not(home: Path) -> None:
    assert holder("a/b", AT) is None and newest("a/b") is None
    first = claim("a/b", AT, "one")
    assert claim("a/b", AT, "one").flow_run == claim("a/b", AT, "two").flow_run == "one"
    assert holder("a/b", AT) == first
    assert claim("a/c", AT, "two").flow_run == "two"


def test_a_slot_is_a_moment_whatever_the_time_zone(home: Path) -> None:
    berlin = timezone(timedelta(hours=1))
    assert claim("a/b", AT, "one").at == AT
    assert claim("a/b", AT.astimezone(berlin), "two").flow_run == "one"
    # At the end of summer time 02:30 comes twice: two moments, two slots.
    assert claim("a/b", AT + timedelta(hours=1), "two").flow_run == "two"
    last = newest("a/b")
    assert last is not None and last.flow_run == "two"
