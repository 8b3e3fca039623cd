"""Labels as judgements, and judgements through the standard forms and back."""

import json

import pytest

from data.judgements import Candidates
from data.labelling.judgements import as_given, gold_items, items_of, judgements_of, read_judgements, to_rows, write_rows
from data.labelling.records import Given, Settings, content_digest
from data.labelling.snapshot import read_labels, write_labels
from data.labelling.store import LabelStore
from data.records import Message, record_id

ASK = (Message("system", "Be kind."), Message("user", "Why?"))


def candidates(*completions: str, name: str = "") -> Candidates:
    return Candidates(name or record_id(ASK, completions), "test", ASK, completions, ("w",) * len(completions))


PAIR, FOUR = candidates("yes", "no", name="p"), candidates("a", "b", "c", "d", name="f")


def test_labels_become_judgements_in_the_order_of_the_completions():
    given = [
        Given("f", "ada", (2, 2, 1, 0), comment="hm", order=(3, 0, 1, 2)),
        Given("p", "ada", (1, 0), -1, order=(1, 0), seconds=3.0),
        Given("p", "bob", (), order=(0, 1)),
        Given("g", "ada", (0, 1), 2, gold_ranks=(0, 1)),
        Given("dropped", "ada", (0, 1), 2),
    ]
    four, pair, skipped = judgements_of([PAIR, FOUR], given)
    assert (four.id, four.judge, four.ranks, four.grade) == ("f", "person:ada", (2, 2, 1, 0), 0)
    assert (four.order, four.comment) == ((3, 0, 1, 2), "hm")
    assert (pair.completions, pair.ranks, pair.grade, pair.order) == (("yes", "no"), (1, 0), -1, (1, 0))
    assert skipped.abstained and skipped.reason == "skipped" and skipped.judge == "person:bob"


def test_rows_of_the_standard_forms_by_hand():
    # D > C > A = B, as it is written on the page.
    (judgement,) = judgements_of([FOUR], [Given("f", "ada", (2, 2, 1, 0))])
    pairs = [(row["chosen"], row["rejected"]) for row in to_rows([judgement], "pairs")]
    assert sorted(pairs) == [("c", "a"), ("c", "b"), ("d", "a"), ("d", "b"), ("d", "c")]
    (ranking,) = to_rows([judgement], "rankings")
    assert ranking["completions"] == ["a", "b", "c", "d"] and ranking["ranks"] == [2, 2, 1, 0]
    assert ranking["prompt"] == [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}]


def test_a_tie_and_an_abstention_make_no_pair():
    given = [Given("p", "ada", (0, 0)), Given("p", "bob", ())]
    assert list(to_rows(judgements_of([PAIR], given), "pairs")) == []
    assert len(list(to_rows(judgements_of([PAIR], given), "rankings"))) == 1


@pytest.mark.parametrize("form", ["pairs", "rankings"])
def test_labels_survive_export_and_import(tmp_path, form):
    given = [Given("p", "ada", (1, 0), -1, "so", (1, 0)), Given("p", "bob", (0, 1), 2, "", (0, 1))]
    assert write_rows(tmp_path / "out.jsonl", judgements_of([PAIR], given), form) == 2
    found, unknown = as_given(read_judgements(tmp_path / "out.jsonl", "nobody"), items_of([PAIR]))
    assert unknown == 0
    kept = [(row.item, row.annotator, row.ranks, row.grade, row.comment) for row in found]
    assert kept == [("p", "ada", (1, 0), -1, "so"), ("p", "bob", (0, 1), 2, "")]
    assert form == "pairs" or [row.order for row in found] == [(1, 0), (0, 1)]


def test_an_imported_ranking_is_turned_into_the_order_of_the_item(tmp_path):
    row = {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"}], "completions": ["d", "b", "c", "a"]}
    (tmp_path / "in.jsonl").write_text(json.dumps({**row, "ranks": [0, 3, 1, 2], "order": [1, 0, 2, 3]}) + "\n")
    found, unknown = as_given(read_judgements(tmp_path / "in.jsonl", "eve"), items_of([PAIR, FOUR]))
    # a is ranked 2, b 3, c 1, d 0; b was shown first, then d, c, a.
    assert (found[0].annotator, found[0].ranks, found[0].order) == ("eve", (2, 3, 1, 0), (1, 3, 2, 0)) and unknown == 0


def test_imported_labels_are_taken_once_and_an_edit_on_the_page_stays(tmp_path):
    store = LabelStore(tmp_path / "task.db")
    store.register(items_of([PAIR, FOUR]), Settings())
    given = [Given("p", "ada", (1, 0), -1)]
    assert store.take_in(given) == 1 and store.take_in(given) == 0
    store.label("ada", 1, type(store.place("ada", 1).answer)((0, 1), 2), form="page")
    assert store.take_in(given) == 0 and store.given()[0].grade == 2
    with pytest.raises(ValueError, match="no item 'x'"):
        store.take_in([Given("x", "ada", (0, 1))])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"prompt": "q", "completion": "a"}', "neither chosen and rejected"),
        ('{"prompt": "q", "chosen": "a", "rejected": "a"}', "same text"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "grade": 7}', "grade 7"),
        ('{"prompt": "q", "chosen": "a", "rejected": "b", "grade": -1}', "contradicts"),
        ("{", "line 1"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(tmp_path, line, fault):
    (tmp_path / "in.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=fault):
        read_judgements(tmp_path / "in.jsonl", "eve")


def test_known_answers_are_read_from_pairs_and_rankings(tmp_path):
    (tmp_path / "gold.jsonl").write_text(
        '{"prompt": "q", "chosen": "right", "rejected": "wrong"}\n{"prompt": "r", "completions": ["x", "y", "z"], "ranks": [2, 1, 1]}\n'
    )
    pair, ranking = gold_items(tmp_path / "gold.jsonl")
    assert (pair.completions, pair.gold_ranks) == (("right", "wrong"), (0, 1))
    assert (ranking.completions, ranking.gold_ranks) == (("x", "y", "z"), (1, 0, 0))


def test_candidates_with_nothing_to_choose_are_not_asked():
    assert [item.id for item in items_of([PAIR, candidates("one"), candidates("same", "same "), PAIR])] == ["p"]
    with pytest.raises(ValueError, match="two different sets of candidates have the id 'p'"):
        items_of([PAIR, candidates("other", "texts", name="p")])


def test_the_digest_of_candidates_is_that_of_what_is_judged():
    assert content_digest([PAIR, FOUR]) == content_digest([Candidates("p", "elsewhere", ASK, ("yes", "no"), ("x", "y")), FOUR])
    assert content_digest([PAIR, FOUR]) != content_digest([FOUR, PAIR])


def test_the_same_labels_give_the_same_bytes_in_any_order(tmp_path):
    given = [Given("p", "bob", (0, 1), 2, "\u202e\u2028", (1, 0), 2.5), Given("f", "ada", (0, 0, 1, 2), gold_ranks=(0, 1, 2, 3))]
    for name, rows in (("a", given), ("b", given[::-1])):
        (tmp_path / name).mkdir()
        write_labels(tmp_path / name, rows)
    assert (tmp_path / "a/labels.jsonl").read_bytes() == (tmp_path / "b/labels.jsonl").read_bytes()
    assert read_labels(tmp_path / "a") == given[::-1]
