"""Labels are never lost and never doubled, whoever sends what, and whatever is killed."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path

import pytest

from data.labelling import store as store_module
from data.labelling.assignment import shown_order, targets
from data.labelling.records import Answer, Given, Item, Settings
from data.labelling.store import LabelStore
from data.records import Message

ROOT = Path(__file__).resolve().parents[3]
FIRST, SECOND, TIE = Answer((0, 1), 2), Answer((1, 0), -1), Answer((0, 0))


def label_all(store: LabelStore, annotator: str, answer: Answer = FIRST) -> list[str]:
    """Label until nothing is left; the items, in order."""
    seen = []
    while position := store.next_open(annotator):
        place = store.place(annotator, position)
        seen.append(place.item)
        store.label(annotator, position, answer, form=f"{annotator}-{position}")
    return seen


def rows(store: LabelStore, query: str) -> list[tuple]:
    connection = sqlite3.connect(store.path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


# One annotator


def test_a_task_is_done_when_every_item_has_its_label(make):
    store = make(items=3)
    assert not store.progress("ada").enough
    assert sorted(label_all(store, "ada")) == ["item-0", "item-1", "item-2"]
    progress = store.progress("ada")
    assert (progress.own_labels, progress.labels, progress.wanted, progress.enough) == (3, 3, 3, True)


def test_a_form_sent_twice_is_one_label(make):
    store = make()
    position = store.next_open("ada")
    assert store.label("ada", position, FIRST, form="f") is True
    assert store.label("ada", position, FIRST, form="f") is False
    assert rows(store, "SELECT COUNT(*) FROM labels") == [(1,)]


def test_another_answer_replaces_the_last_which_is_kept(make):
    store = make()
    position = store.next_open("ada")
    for form, answer in [("f", FIRST), ("g", SECOND), ("f", FIRST), ("g", TIE), ("g", SECOND)]:
        store.label("ada", position, answer, form=form)
    assert store.place("ada", position).answer == SECOND
    # The third one is the first form again, late: it changes nothing. The last two are a change of mind on one page.
    kept = rows(store, "SELECT form, grade, superseded_at IS NULL FROM labels ORDER BY id")
    assert kept == [("f", 2, 0), ("g", -1, 0), ("g", 0, 0), ("g", -1, 1)]
    assert store.progress("ada").labels == 1


def test_two_labels_of_one_annotator_cannot_stand_whatever_the_code_does(make):
    store = make()
    store.label("ada", store.next_open("ada"), FIRST, form="f")
    with pytest.raises(sqlite3.IntegrityError), store.database.writing() as connection:
        connection.execute(
            "INSERT INTO labels SELECT NULL, item, annotator, 'x', ranks, grade, comment, seconds, shown, at, NULL FROM labels"
        )
    assert rows(store, "SELECT COUNT(*) FROM labels") == [(1,)]


def test_what_is_skipped_comes_back_after_the_rest(make):
    store = make(items=3)
    first = store.next_open("ada")
    store.skip("ada", first)
    others = [store.next_open("ada")]
    store.label("ada", others[0], FIRST, form="a")
    others.append(store.next_open("ada"))
    store.label("ada", others[1], FIRST, form="b")
    assert first not in others and store.next_open("ada", after=others[1]) == first
    assert [given.ranks for given in store.given() if given.item == store.place("ada", first).item] == [()]
    store.label("ada", first, FIRST, form="c")
    assert store.next_open("ada") is None and store.progress("ada").own_skips == 0
    store.skip("ada", first)  # labelled already: it stays so
    assert store.progress("ada").own_labels == 3


@pytest.mark.parametrize("answer", [Answer((0,)), Answer((0, -1)), Answer((0, 1), -2), Answer((0, 1), 3), Answer((0, 0), 1)], ids=str)
def test_an_answer_that_fits_no_pair_is_refused(make, answer):
    store = make()
    position = store.next_open("ada")
    with pytest.raises(ValueError, match=r"ranks|grade"):
        store.label("ada", position, answer, form="f")
    assert store.given() == []


def test_ranks_are_made_dense_and_the_comment_is_cut(make):
    store = make(k=4)
    store.label("ada", store.next_open("ada"), Answer((7, 0, 7, 3), 0, "x" * 5000), form="f")
    (given,) = store.given()
    assert given.ranks == (2, 0, 2, 1) and len(given.comment) == 4000


def test_nobody_labels_what_is_not_on_their_list(make):
    store = make()
    with pytest.raises(KeyError):
        store.label("ada", 1, FIRST, form="f")


# Order and sharing out


def test_the_order_shown_is_drawn_for_each_annotator_recorded_and_the_same_after_a_restart(make):
    store = make(items=20)
    orders = {}
    while position := store.next_open("ada"):
        place = store.place("ada", position)
        orders[place.item] = place.order
        store.label("ada", position, FIRST, form=str(position))
    assert 3 < Counter(orders.values())[0, 1] < 17
    assert {given.item: given.order for given in LabelStore(store.path).given()} == orders
    assert orders == {item: shown_order(0, "ada", item, 2) for item in orders}
    assert orders != {item: shown_order(0, "bob", item, 2) for item in orders}


def test_targets_by_hand():
    ids = [f"i{n}" for n in range(10)]
    found = targets(ids, Settings(overlap_share=0.25, overlap_annotators=3))
    assert sorted(found.values()) == [1] * 8 + [3] * 2
    assert targets(ids, Settings(overlap_share=1.0)) == dict.fromkeys(ids, 2)
    assert found != targets(ids, Settings(overlap_share=0.25, overlap_annotators=3, seed=1))


def test_items_that_overlap_are_labelled_by_different_people(make):
    store = make(items=6, overlap_share=0.5)
    assert len(label_all(store, "ada")) == 6 and not store.progress().enough
    assert len(label_all(store, "bob")) == 3 and store.progress().enough
    assert Counter(given.item for given in store.given()).most_common(3)[2][1] == 2


def test_an_item_that_somebody_looks_at_is_kept_for_them_for_a_while(make, monkeypatch):
    store = make(items=1)
    assert store.next_open("ada") == 1
    assert store.next_open("bob") is None
    monkeypatch.setattr(store_module, "RENEW_S", -1.0)
    before = rows(store, "SELECT shown_at FROM assignments")
    store.place("ada", 1)
    assert rows(store, "SELECT shown_at FROM assignments") > before
    monkeypatch.setattr(store_module, "CLAIM_S", -1.0)  # as if a long time had passed
    assert store.next_open("bob") == 1


def test_items_with_a_known_answer_are_mixed_in_and_do_not_count(make):
    store = make(items=12, gold=3, gold_share=0.6)
    seen = label_all(store, "ada")
    assert {item for item in seen if item.startswith("gold")} == {"gold-0", "gold-1", "gold-2"}
    assert store.progress("ada").labels == 12 and store.progress("ada").own_labels == 15
    assert make(items=12, gold=3, gold_share=0.0).progress().wanted == 12


def test_the_wanted_number_is_never_more_than_the_items_can_get(make):
    assert make(items=3, labels=2).progress().wanted == 2
    assert make(items=3, labels=50).progress().wanted == 3


def test_more_labels_of_one_item_do_not_stand_in_for_those_of_another(make):
    store = make(items=2)
    store.take_in(Given("item-0", name, (0, 1)) for name in ("ada", "bob", "eve"))
    assert store.progress().labels == 1 and not store.progress().enough


def test_changed_settings_keep_labels_and_a_dropped_item_is_set_aside(make):
    store = make(items=3)
    label_all(store, "ada")
    store = make(items=2, overlap_share=1.0)
    assert (store.progress().labels, store.progress().wanted) == (2, 4)
    assert {given.item for given in store.given()} == {"item-0", "item-1"}
    assert make(items=3).progress().labels == 3


# Several at once, and kills


def test_people_who_work_at_once_label_every_item_once(make):
    store = make(items=24)
    names = ["ada", "bob", "eve", "mia"]
    for name in names:
        store.add_annotator(name, name, by_link=False)
    barrier = threading.Barrier(len(names))
    seen: dict[str, list[str]] = {}

    def work(name: str) -> None:
        barrier.wait()
        seen[name] = label_all(LabelStore(store.path), name)

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(item for items in seen.values() for item in items) == sorted(f"item-{n}" for n in range(24))
    assert sum(bool(items) for items in seen.values()) > 1


def test_one_form_sent_by_many_at_once_is_one_label(make):
    store = make()
    position = store.next_open("ada")
    barrier = threading.Barrier(8)
    new = []

    def send() -> None:
        barrier.wait()
        new.append(store.label("ada", position, FIRST, form="f"))

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(new) == [False] * 7 + [True] and len(store.given()) == 1


WRITER = """
import sys
from pathlib import Path
from data.labelling.records import Answer
from data.labelling.store import LabelStore

store = LabelStore(Path(sys.argv[1]))
n = 0
while position := store.next_open("ada"):
    store.label("ada", position, Answer((0, 1), 2, "x" * 3000), form=f"form-{position}")
    print(store.place("ada", position).item, flush=True)
"""


def test_a_kill_in_the_middle_of_writing_loses_nothing_that_was_acknowledged(make):
    store = make(items=400)
    acknowledged: list[str] = []
    for kill_after in (5, 17, 3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(store.path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        for _ in range(kill_after):
            acknowledged.append(writer.stdout.readline().strip())
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged += [line.strip() for line in writer.stdout if line.endswith("\n")]
        writer.stdout.close()
        writer.wait()
    found = [given.item for given in LabelStore(store.path).given()]
    assert len(acknowledged) >= 25 and set(acknowledged) <= set(found)
    assert len(found) == len(set(found)) <= len(acknowledged) + 3  # at most one label a kill was written and not yet acknowledged
    assert rows(store, "PRAGMA integrity_check") == [("ok",)]


def test_a_fault_in_a_transaction_leaves_nothing_of_it(make):
    store = make()
    with pytest.raises(RuntimeError), store.database.writing() as connection:
        connection.execute("UPDATE items SET retired = 1")
        raise RuntimeError("in the middle")
    assert len(store.items()) == 4


def test_every_commit_is_forced_to_disk_and_readers_do_not_wait(make):
    store = make()
    with store.database.reading() as connection:
        assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2  # FULL
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


# Tokens, files


def test_a_new_link_replaces_the_old_one_and_names_given_freely_do_not_count_where_links_do(make):
    store = make()
    for digest in ("first", "second"):
        store.add_annotator("ada", digest, by_link=True)
    assert store.annotator_of("first", links_only=False) is None
    assert store.annotator_of("second", links_only=True) == "ada"
    assert store.annotator_of("token of ada", links_only=False) == "ada"
    assert store.annotator_of("token of ada", links_only=True) is None


def test_any_text_comes_back_as_it_was(tmp_path):
    texts = ("\x00\ud800\u202e</script>", "\U0001f600 '; DROP TABLE labels; --")
    store = LabelStore(tmp_path / "task.db")
    item = Item("i", (Message("user", texts[0]),), texts)
    store.register([item], Settings())
    assert store.item("i") == item


def test_a_file_that_is_no_task_is_said_to_be_none(tmp_path):
    (tmp_path / "task.db").write_text("not a database, but long enough to be read as the head of one" * 20)
    with pytest.raises(ValueError, match="not a labelling task"):
        LabelStore(tmp_path / "task.db")


def test_a_file_of_a_later_version_is_refused(make):
    store = make()
    with store.database.writing() as connection:
        connection.execute("PRAGMA user_version=99")
    with pytest.raises(ValueError, match="format 99"):
        LabelStore(store.path)
