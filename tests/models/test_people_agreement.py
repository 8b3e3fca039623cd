"""Agreement of a reward model with people beside that of people, by hand."""

import pytest

from data.measures import Measure
from data.people_pairs import PeoplePair
from data.records import Message, Preference
from models.people_agreement import agreement_measures


def pair(number: int, votes: tuple[int, ...], item: str = "") -> PeoplePair:
    record = Preference(f"p{number}", "toy", (Message("user", f"{number}?"),), "a", "b")
    return PeoplePair(record, votes, item or record.id)


def by_name(pairs: list[PeoplePair], verdicts: list[int]) -> dict[str, Measure]:
    return {one.name.removesuffix("/people=toy"): one for one in agreement_measures(pairs, verdicts, "toy", seed=0, resamples=300)}


def test_one_pair_by_hand():
    found = by_name([pair(0, (1, 1, -1))], [1])
    assert found["reward_agreement"].mean == pytest.approx(2 / 3)
    assert found["human_agreement"].mean == pytest.approx(1 / 3)
    assert found["people_accuracy"].mean == 1


def test_kappa_by_hand():
    """Model against people: 8 of 10 alike, chance one half: 0.6. People against people: 6 of 10 alike, chance one half: 0.2."""
    alike = [pair(n, (1, 1) if n < 3 else (-1, -1)) for n in range(6)]
    apart = [pair(6 + n, (1, -1)) for n in range(4)]
    verdicts = [1, 1, 1, -1, -1, -1, 1, -1, 1, -1]
    found = by_name(alike + apart, verdicts)
    assert found["reward_agreement"].mean == pytest.approx((12 + 4) / 20)
    assert found["reward_kappa"].mean == pytest.approx(0.6)
    assert found["human_agreement"].mean == pytest.approx(0.6) and found["human_kappa"].mean == pytest.approx(0.2)
    assert found["reward_kappa"].low < 0.6 < found["reward_kappa"].high
    assert found["people_accuracy"].mean == 1 and len(found["people_accuracy"].values) == 6, "a split vote decides nothing"


def test_ties_of_people_are_not_held_against_the_model_where_both_decide():
    found = by_name([pair(0, (1, 0)), pair(1, (-1, 0)), pair(2, (1, 1))], [1, -1, 1])
    assert found["reward_agreement"].mean == pytest.approx(4 / 6)
    assert found["reward_decided_agreement"].mean == 1
    assert found["human_agreement"].mean == pytest.approx(1 / 3) and found["human_decided_agreement"].mean == 1


def test_one_vote_a_pair_says_nothing_of_people():
    found = by_name([pair(n, (1 if n % 2 else -1,)) for n in range(8)], [1, -1] * 4)
    assert set(found) == {"reward_agreement", "reward_kappa", "reward_decided_agreement", "people_accuracy"}
    assert found["reward_agreement"].mean == 0 and found["reward_kappa"].mean == pytest.approx(-1)
    assert found["reward_agreement"].better == "higher"


def test_comparisons_of_one_item_are_one_observation():
    verdicts = [1 if n < 6 else -1 for n in range(12)]
    wide = by_name([pair(n, (1, 1), item="odd" if n < 6 else "even") for n in range(12)], verdicts)["reward_agreement"]
    narrow = by_name([pair(n, (1, 1)) for n in range(12)], verdicts)["reward_agreement"]
    assert wide.mean == narrow.mean == 0.5
    assert (wide.low, wide.high) == (0, 1) and narrow.low > 0.1
