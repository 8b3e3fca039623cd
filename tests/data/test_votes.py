"""Votes of several judges, by hand."""

import math

import pytest

from data.judgements import BETTER, SLIGHTLY_BETTER, SLIGHTLY_WORSE, TIE, WORSE, Candidates, Judgement
from data.records import Message
from data.votes import Settled, abstained, says, scored, settle

ASKED = (Message("user", "?"),)
ROW = Candidates("c", "toy", ASKED, ("x", "y", "z"), ("sft@1.0",) * 3)


def judged(*ranks: int, grade: int = 0, scores: tuple[float, ...] = ()) -> Judgement:
    return Judgement("c", "toy", "judge", ASKED, tuple("xyzvw"[: len(ranks) or 3]), ranks, grade=grade, scores=scores)


def settled(*judgements: Judgement, weights: tuple[float, ...] = ()) -> Settled:
    return settle(judgements, weights or (1.0,) * len(judgements))


THREE = (judged(0, 1, 2), judged(1, 0, 2), judged(0, 0, 1))


def test_three_judges_by_hand():
    """Two disagree on x and y and one ties them; all put z last: (0 + 1)/2 of the net votes, as shares of comparisons."""
    found = settled(*THREE)
    assert found.wins == found.scores == (0.75, 0.75, 0.0) and found.ranks == (0, 0, 1) and found.grade == TIE


def test_weights_by_hand():
    """Weight 2 for the first: net x over y (2 - 1 + 0)/4 = 1/4, so that x wins (5/8 + 1)/2 and y (3/8 + 1)/2 of its comparisons."""
    found = settled(*THREE, weights=(2.0, 1.0, 1.0))
    assert found.wins == (0.8125, 0.6875, 0.0) and found.ranks == (0, 1, 2)


def test_weights_that_are_no_binary_fractions_still_tie():
    first, second = judged(0, 1), judged(1, 0)
    assert settled(first, first, second, weights=(0.1, 0.2, 0.3)).ranks == (0, 0)


def test_who_abstains_has_no_vote():
    silent = abstained(ROW, "judge", "too long")
    assert silent.abstained and silent.reason == "too long" and says(silent, 0, 1) is None
    assert settled(judged(0, 1, 2), silent).ranks == (0, 1, 2)
    assert settled(silent, silent) == settled() == Settled()


def test_a_single_judge_keeps_its_scores_and_its_grade():
    found = settled(judged(1, 0, 1, scores=(0.25, 7.0, 0.25)))
    assert found.scores == (0.25, 7.0, 0.25) and found.ranks == (1, 0, 1) and found.wins == (0.25, 1.0, 0.25)
    assert settled(judged(1, 0, grade=SLIGHTLY_WORSE)).grade == SLIGHTLY_WORSE
    assert settled(judged(0, 1, 2)).scores == (), "ranks alone are no scores"


@pytest.mark.parametrize(
    ("grades", "wanted"),
    [
        ((BETTER, SLIGHTLY_BETTER), SLIGHTLY_BETTER),  # 1.5 is not above it
        ((BETTER, BETTER, SLIGHTLY_BETTER), BETTER),  # 5/3
        ((BETTER, SLIGHTLY_WORSE), SLIGHTLY_BETTER),  # 1/2
        ((BETTER, WORSE), TIE),
        ((WORSE, WORSE, SLIGHTLY_WORSE), WORSE),
        ((SLIGHTLY_WORSE, TIE), SLIGHTLY_WORSE),
    ],
)
def test_grades_are_averaged(grades: tuple[int, ...], wanted: int):
    """Of two completions; the ranks agree with the grade."""
    votes = [judged(int(g < 0), int(g > 0), grade=g) for g in grades]
    found = settled(*votes)
    assert found.grade == wanted and found.ranks == {1: (0, 1), 0: (0, 0), -1: (1, 0)}[(wanted > 0) - (wanted < 0)]


def test_slightly_is_half_a_vote():
    assert says(judged(0, 1, grade=SLIGHTLY_BETTER), 0, 1) == 0.5 and says(judged(0, 1, grade=SLIGHTLY_BETTER), 1, 0) == -0.5
    assert says(judged(1, 0, grade=WORSE), 0, 1) == -1.0 and says(judged(0, 1), 0, 1) == 1.0 and says(judged(0, 0), 0, 1) == 0.0


def test_what_a_judge_could_not_score_ranks_last_and_has_no_vote():
    broken = scored(ROW, "judge", [1.0, math.nan, -2.0], "boom")
    assert broken.ranks == (0, 1, 1) and math.isnan(broken.scores[1]) and says(broken, 0, 1) is None and says(broken, 0, 2) == 1.0
    alone = settled(broken)
    assert alone.scores == (1.0, -2.0, -2.0) and alone.failed == (False, True, False)
    both = settled(broken, judged(1, 0, 2))
    assert both.failed == (False, False, False) and both.ranks == (1, 0, 2), "y beats both by the one who could judge it"
    assert settled(scored(ROW, "judge", [math.nan] * 3)).ranks == (0, 0, 0)


def test_a_single_completion_is_first_and_wins_nothing():
    assert settled(judged(0), judged(0)) == Settled((0,), (), (), TIE, (False,))
