"""Time left, worked out by hand."""

import pytest

from tasks import pace
from tasks.pace import Pace


def left(sights: list[tuple[float, int]], total: int) -> list[float | None]:
    """What is told after each sight (seconds, steps done)."""
    seen = Pace()
    return [seen.left_s(seconds, done, total) for seconds, done in sights]


def test_it_is_told_once_two_sights_after_the_first_are_five_seconds_apart() -> None:
    # The first update came after 30 s, of which 27 s were starting. 3 s each from then on, 8 of 10 steps are left, then 7, then 6.
    assert left([(30.0, 1), (33.0, 2), (36.0, 3), (39.0, 4)], 10) == [None, None, None, 6 * 3.0]


def test_a_resumed_attempt_counts_only_its_own_steps() -> None:
    # At update 120 of 400 after a restart: 281 would be left at the pace of 121 updates in 20 s, which is not the pace.
    assert left([(20.0, 121), (25.0, 122), (30.0, 123)], 400) == [None, None, (400 - 123) * 5.0]


def test_slow_first_steps_are_forgotten() -> None:
    sights = [(10.0, 1), (20.0, 2), (30.0, 3), *((30.0 + 2 * n, 3 + n) for n in range(1, 9))]
    # The newer half begins in the middle of the steps 2 to 11, at 6.5: from the sight (36, 6) on 2 s each.
    assert left(sights, 20)[-1] == (20 - 11) * (46.0 - 36.0) / (11 - 6) == 18.0


def test_steps_that_were_read_back_do_not_count() -> None:
    # 40 chunks of an earlier attempt are read back in 1.5 s, in three sights; from then on a chunk takes 30 s.
    assert left([(0.5, 1), (1.0, 20), (1.5, 40), (31.5, 41), (61.5, 42), (91.5, 43)], 100)[-2:] == [58 * 30.0, 57 * 30.0]


def test_steps_of_different_length_are_averaged() -> None:
    # Every fourth step also saves: 1, 1, 1, 5 seconds. Eight steps before the end are two such rounds.
    seconds, sights = 10.0, [(10.0, 1)]
    for done in range(2, 26):
        seconds += 5.0 if done % 4 == 0 else 1.0
        sights.append((seconds, done))
    assert left(sights, 32)[-1] == pytest.approx(7 * 2.0, rel=0.1)


def test_time_that_passes_without_a_step_is_taken_off() -> None:
    assert left([(0.0, 1), (10.0, 2), (20.0, 3), (24.0, 3)], 10)[-2:] == [70.0, 66.0]
    assert left([(0.0, 1), (10.0, 2), (20.0, 3), (999.0, 3)], 10)[-1] == 0.0


def test_while_the_total_grows_nothing_is_told() -> None:
    growing = Pace()
    assert [growing.left_s(10.0 * n, 100 * n, 100 * n + 1) for n in range(1, 20)] == [None] * 19
    assert growing.left_s(1.0, 1, 0) is None


def test_another_pass_over_the_data_begins_anew() -> None:
    # The second pass is three times as slow, and its own pace is told.
    first = [(10.0 * n, 100 * n) for n in range(1, 11)]
    second = [(100.0 + 30.0 * n, 100 * n) for n in range(1, 5)]
    assert left(first + second, 1000)[-3:] == [None, 210.0, 180.0]


def test_a_long_run_keeps_few_sights() -> None:
    seen = Pace()
    told = [seen.left_s(0.5 * n, n, 100_000) for n in range(1, 20_001)]
    assert told[-1] == pytest.approx(80_000 * 0.5)
    assert len(seen._sights) <= pace.MOST_SIGHTS + 1
