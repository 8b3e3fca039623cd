"""The executor of curation's blocks, with blocks made for it."""

import contextlib
import json
import threading
import tracemalloc
from collections import Counter
from typing import get_args

import pytest

from data.blocks import executor
from data.blocks.base import Block, Row, Survey
from data.blocks.executor import Step, run_blocks
from data.blocks.offers import Offers, take_offers
from data.blocks.registry import BLOCKS, BlockKind, load, place_of
from data.blocks.rows import Numbered, RowStore, decode, encode
from data.blocks.tally import SAMPLES
from data.forms import Example
from data.records import Message

PLANTED = "tests.data.planted_blocks"


def step(name, label="", **settings):
    return Step(label or name.lower(), f"{PLANTED}:{name}", settings)


def row(line, text, source=0):
    return Row(source, f"file{source}", line, Example((Message("user", f"q{line}"),), completion=text))


@pytest.fixture
def passed(tmp_path, run, monkeypatch):
    """Runs blocks over rows in small shards."""
    monkeypatch.setattr(executor, "_SHARD_ROWS", 7)

    def passed(rows, *steps, workers=1, seed=3, evaluated=(), name="scratch", offers=None):
        (tmp_path / name).mkdir()
        return run_blocks(
            rows,
            steps,
            sources=["here", "there"],
            evaluated=lambda: evaluated,
            scratch=tmp_path / name,
            seed=seed,
            workers=workers,
            run=run,
            offers=offers,
        )

    return passed


ROWS = [row(i, f"text {i % 9} of {'many words' if i % 5 else ''}", source=i % 2) for i in range(1, 61)]


def outcome(result):
    rows = [(n.number, n.edited, n.row) for n in result.rows()]
    return rows, result.tallies, result.rejected.read_text()


def test_any_number_of_workers_gives_the_same_rows_counts_samples_and_list(passed):
    steps = (step("Upper", only="many"), step("Short", least=14), step("Luck", share=0.7), step("Upper", label="again"), step("First"))
    one, two, three = (outcome(passed(ROWS, *steps, workers=n, name=f"w{n}")) for n in (1, 2, 3))
    assert one == two == three
    other = outcome(passed(ROWS, *steps, seed=4, name="other"))
    assert other[0] != one[0] and other[1][0].kept_samples != one[1][0].kept_samples


class Over(Exception):
    """The one who takes offers is ended."""


@pytest.fixture
def taking(tmp_path):
    """Someone on another host who takes what is offered, until the test is over."""
    over = threading.Event()

    def tick():
        if over.is_set():
            raise Over

    def take():
        with contextlib.suppress(Over):
            take_offers(tmp_path / "offers", tick)

    def start():
        threads.append(threading.Thread(target=take))
        threads[-1].start()

    threads = []
    (tmp_path / "offers").mkdir()
    yield start
    over.set()
    for thread in threads:
        thread.join()


def test_what_another_host_does_is_the_same(passed, taking, tmp_path):
    steps = (step("Upper", only="many"), step("Short", least=14), step("Luck", share=0.7), step("First"))
    alone = outcome(passed(ROWS * 4, *steps, name="alone"))
    offers = Offers(tmp_path / "offers", 1)
    assert outcome(passed(ROWS * 4, *steps, name="nobody takes", offers=offers)) == alone
    assert offers.count and not offers.open and not list((tmp_path / "offers").glob("*.done")), "taken back, every one"
    taking()
    taking()
    assert outcome(passed(ROWS * 4, *steps, name="two take", offers=Offers(tmp_path / "offers", 8))) == alone
    assert len(list((tmp_path / "offers").glob("0-*.done"))) > 2


def test_an_error_on_another_host_names_the_block(passed, taking, tmp_path):
    """Row 41 is in the sixth shard, and one process here has hands for two."""
    taking()
    with pytest.raises(ValueError, match=r"block fatal: .*the model file"):
        passed(ROWS, step("Fatal", line=41, how="user"), name="fails", offers=Offers(tmp_path / "offers", 8))


def test_counts_reasons_and_the_list_by_hand(passed):
    """12 of 60 rows have no words: 'text d of ' with their prompt are 13 characters long, 12 where the line has one digit."""
    result = passed(ROWS, step("Upper", only="many"), step("Short", least=15))
    upper, short = result.tallies
    assert (upper.rows, upper.kept, upper.edited, upper.reasons) == (60, 60, 48, Counter())
    assert upper.labels == {"even": 30, "odd": 30}
    assert (short.rows, short.kept, short.edited) == (60, 48, 0)
    assert short.rejected == {0: Counter(short=6), 1: Counter(short=6)}  # lines 5 to 60 in fives, odd and even in turn
    assert [n.row.line for n in result.rows()] == [i for i in range(1, 61) if i % 5]
    listed = [json.loads(line) for line in result.rejected.read_text().splitlines()]
    assert listed[0] == {
        "source": "there",
        "file": "file1",
        "line": 5,
        "block": "short",
        "reason": "short",
        "detail": "13 characters, the least is 15",
    }
    assert [entry["line"] for entry in listed] == list(range(5, 61, 5))


def test_a_survey_sees_all_rows_and_blocks_after_it_what_it_left(passed):
    rows = [row(i, f"same {i % 3}") for i in range(30)]
    rows = [Row(r.source, r.file, r.line, Example((), completion=r.example.completion)) for r in rows]
    result = passed(rows, step("First"), step("Upper"), step("First", label="first-2"))
    assert [(n.number, n.edited, n.row.text) for n in result.rows()] == [(i, True, f"SAME {i}") for i in range(3)]
    first, upper, again = result.tallies
    assert (first.rows, first.kept, first.reasons) == (30, 3, Counter(repeated=27))
    assert (upper.rows, upper.edited, again.rows, again.kept) == (3, 3, 3, 3)
    listed = [json.loads(line) for line in result.rejected.read_text().splitlines()]
    assert listed[0]["line"] == 3 and listed[0]["detail"] == "as row 0" and listed[0]["block"] == "first"


def test_what_a_block_prepares_reaches_every_worker(passed, tmp_path):
    (tmp_path / "words").write_text("7 text")
    rows = [row(i, f"words {i}") for i in range(30)]
    result = passed(rows, step("Words", file=str(tmp_path / "words")), step("Seen"), workers=2, evaluated=["q11", "words 12"])
    assert [n.row.line for n in result.rows()] == [i for i in range(30) if "7" not in str(i) and i not in (11, 12)]
    assert result.tallies[1].reasons == {"evaluated": 2}


def test_no_row_is_left(passed):
    result = passed(ROWS, step("Short", least=1000), step("First"), step("Upper"))
    assert list(result.rows()) == [] and result.n_rows == 0
    assert [tally.rows for tally in result.tallies] == [60, 0, 0]
    assert list(passed([], step("Short"), step("First"), name="none").rows()) == []


def test_the_samples_are_bounded_and_say_what_was_done(passed):
    result = passed(ROWS * 3, step("Upper", only="many"), step("Short", least=15))
    upper, short = result.tallies
    assert len(upper.kept_samples) == SAMPLES and len(short.rejected_samples) == SAMPLES and not upper.rejected_samples
    edited = next(sample for sample in upper.kept_samples if sample.before)
    assert edited.text == edited.before.upper() != edited.before
    assert {sample.reason for sample in short.rejected_samples} == {"short"}
    assert len({sample.priority for sample in upper.kept_samples}) == SAMPLES


@pytest.mark.parametrize("workers", [1, 3])
def test_a_killed_worker_is_an_error_that_names_the_block(passed, workers):
    with pytest.raises(ChildProcessError, match=r"a worker process of block deadly was killed by SIGKILL, at the rows of .*read-\d"):
        passed(ROWS, step("Upper"), step("Fatal", label="deadly", line=25), workers=workers)


@pytest.mark.parametrize(("how", "kind", "words"), [("user", ValueError, "the model file"), ("bug", LookupError, "KeyError: 'mistake'")])
def test_what_a_block_raises_arrives_with_its_kind_and_the_block(passed, capfd, how, kind, words):
    with pytest.raises(kind, match=f"block fatal: .*{words}"):
        passed(ROWS, step("Fatal", line=25, how=how))
    assert "planted_blocks.py" in capfd.readouterr().err


def test_a_row_comes_back_exactly_as_it_was():
    example = Example(
        (Message("system", "\u2028\x1e\n"), Message("user", "\ud800 \u00e9 \U0001f600")),
        completion="",
        chosen="a\tb",
        rejected=None,
        margin=-0.1,
        labelled="x",
        desirable=False,
        ranked=("p", "q"),
        ranks=(1, 0),
        scores=(0.1, 1e300),
        answer="\r\n",
        metadata={"a": [1, None, {"b": 2.5}]},
    )
    kept = Numbered(2**40, True, Row(3, "file \udcff", 7, example))
    assert decode(encode(kept)) == kept and encode(kept).count(b"\n") == 1


def test_rows_are_found_again_in_any_order(tmp_path):
    store = RowStore(tmp_path / "rows")
    places = [store.add(row(i, "x" * i)) for i in range(50)]
    assert store[places[40]] == row(40, "x" * 40)
    places.append(store.add(row(50, "last")))
    assert [store[place].line for place in reversed(places)] == list(range(50, -1, -1))
    store.close()


def test_memory_does_not_grow_with_the_rows(passed, monkeypatch):
    """What may stay of a row is a bit of each survey's decision; a row alone takes more than 1000 bytes. Here 20 are allowed."""
    monkeypatch.setattr(executor, "_SHARD_ROWS", 500)

    def peak(n):
        tracemalloc.start()
        result = passed((row(i, f"text {i} " + "long " * 20) for i in range(n)), step("Upper"), step("Luck"), name=f"n{n}")
        assert sum(1 for _ in result.rows()) == result.n_rows
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(2_000), peak(10_000)
    assert many - few < 20 * 8_000


@pytest.mark.parametrize("kind", get_args(BlockKind))
def test_every_kind_has_its_block_and_settings(kind: str):
    texts = {"perplexity": ("text",), "classifier": ("good", "bad"), "dsir": ("target",)}
    block, settings = load(place_of(kind), dict.fromkeys(texts.get(kind, ()), __file__))
    assert block(settings).name == kind and isinstance(block(settings), Block | Survey)


def test_no_block_is_without_a_kind():
    assert set(BLOCKS) == set(get_args(BlockKind))
