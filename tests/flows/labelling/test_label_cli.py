"""`posttrain label` and `posttrain labels`: who may reach the page, and labels from and to files."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from data.judgements import Candidates
from data.labelling.records import Answer
from data.labelling.store import LabelStore
from data.records import Message
from data.tables import write_table
from flows.cli.label import Serving, _bound, is_loopback, label
from flows.cli.labels import export_labels, import_labels, list_labels, report_labels
from flows.labelling import tasks

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def table(home: Path, tmp_path: Path) -> Path:
    rows = [Candidates(f"c{n}", "test", (Message("user", f"Question {n}?"),), ("yes", "no"), ("a", "b")) for n in range(2)]
    write_table(tmp_path / "candidates.parquet", rows)
    return tmp_path / "candidates.parquet"


@pytest.fixture
def store(table: Path) -> LabelStore:
    """Both items labelled by ada: the first completion better, then a tie."""
    store = tasks.find(str(table))
    store.add_annotator("ada", "t", by_link=False)
    for answer in (Answer((0, 1), 1, "so"), Answer((0, 0))):
        position = store.next_open("ada")
        assert position is not None
        store.label("ada", position, answer, form=str(position), seconds=4.0)
    return store


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_addresses_of_this_machine(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org", ""])
def test_a_page_that_others_can_reach_needs_links(host, table):
    assert not is_loopback(host)
    with pytest.raises(ValueError, match="name those who label with --annotator"):
        label(str(table), Serving(host, 0, []))


def test_a_taken_port_gives_way_to_another_and_a_foreign_address_is_refused():
    with _bound(Serving("127.0.0.1", 0, [])) as first, _bound(Serving("127.0.0.1", first.getsockname()[1], [])) as second:
        assert second.getsockname()[1] not in (0, first.getsockname()[1])
    with pytest.raises(ValueError, match=r"--host 203.0.113.7"):
        _bound(Serving("203.0.113.7", 0, ["ada"]))


def test_the_command_prints_a_link_that_works_and_ends_with_ctrl_c(home, table):
    command = [sys.executable, "-u", "-m", "flows.cli", "label", str(table), "--port", "0", "--annotator", "ada", "--annotator", "bob"]
    environment = {**os.environ, "POSTTRAIN_HOME": str(home), "COLUMNS": "200"}
    page = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert page.stdout is not None
    links = {}
    for line in page.stdout:
        if found := re.match(r"  (\w+) +(http://127\.0\.0\.1:\d+/enter/[0-9a-f]{64})$", line):
            links[found[1]] = found[2]
        if line.startswith("Ctrl-C"):
            break
    assert set(links) == {"ada", "bob"} and links["ada"] != links["bob"]
    with urllib.request.urlopen(links["bob"], timeout=30) as answer:
        assert "bob" in answer.read().decode()
    page.send_signal(signal.SIGINT)
    _, err = page.communicate(timeout=60)
    assert page.returncode == 0 and "The labels are kept" in err and "enter" not in err


def test_labels_are_listed_and_reported(store, capsys):
    assert list_labels() == 0 and report_labels(store.name) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"{store.name} +2 +2", printed) and "2 labels of 2 items" in printed and "| ada | 2 | 0 |" in printed


def test_labels_go_to_a_file_and_into_another_home(store, tmp_path, monkeypatch, table, capsys):
    assert export_labels(store.name, tmp_path / "pairs.jsonl", "pairs") == 0
    assert export_labels(store.name, tmp_path / "rankings.jsonl", "rankings") == 0
    (pair,) = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert (pair["chosen"], pair["rejected"], pair["grade"], pair["judge"], pair["comment"]) == ("yes", "no", 1, "person:ada", "so")
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "elsewhere"))
    assert import_labels(str(table), tmp_path / "rankings.jsonl", "nobody") == 0
    assert "2 labels taken, 0 were there before, 0 fit no item" in capsys.readouterr().out
    there = tasks.find(str(table))
    assert there.path != store.path
    kept = [(row.item, row.annotator, row.ranks, row.grade, row.comment, row.order) for row in store.given()]
    assert [(row.item, row.annotator, row.ranks, row.grade, row.comment, row.order) for row in there.given()] == kept
