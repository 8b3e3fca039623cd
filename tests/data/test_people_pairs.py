"""What people said, as pairs: of published sets, and of labels."""

from data.judge_sets import JudgedPair
from data.judgements import Candidates, Judgement
from data.people_pairs import of_labels, of_set
from data.records import Message

ASKED = (Message("user", "why?"),)


def label(judge: str, ranks: tuple[int, ...], completions: tuple[str, ...] = ("a", "b", "c"), grade: int = 0) -> Judgement:
    return Judgement("item", "toy", judge, ASKED, completions, ranks, grade=grade)


def test_a_published_pair_keeps_its_votes():
    (one,) = of_set([JudgedPair(Candidates("x", "pandalm", ASKED, ("a", "b"), ("", "")), 1, (1, 1, -1), "s")])
    assert (one.pair.chosen, one.pair.rejected, one.votes, one.item) == ("a", "b", (1, 1, -1), "x")


def test_a_ranking_is_all_its_comparisons_by_every_person():
    people = [label("person:ada", (0, 1, 1)), label("person:bob", (1, 0, 2)), label("person:cy", ())]
    found = of_labels([*people, label("verifier", (2, 1, 0))])
    said = [(one.pair.chosen, one.pair.rejected, one.votes) for one in found]
    assert said == [("a", "b", (1, -1)), ("a", "c", (1, 1)), ("b", "c", (0, 1))]
    assert {one.item for one in found} == {"item"} and len({one.pair.id for one in found}) == 3


def test_equal_texts_and_grades():
    assert of_labels([label("person:ada", (0, 0), ("a", " a "))]) == []
    (one,) = of_labels([label("person:ada", (1, 0), ("a", "b"), grade=-1)])
    assert one.votes == (-1,)
