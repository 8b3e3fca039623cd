"""Time left of a stage, from the pace of the attempt that runs.

    left = (total - done) * (t_n - t_k) / (done_n - done_k)

n is the newest sight of the progress. k is the sight from which on the newer half of this attempt's steps was made: a pace that changes
(answers that grow longer, a cache that fills) is followed. Never used: the time up to the second sight, which starting takes and no step
will take again; and sights at the beginning that came five times as fast as all since, which are steps read back from an earlier attempt.
"""

from __future__ import annotations

FEWEST_MEASURED_S = 5.0  # seconds of steps, below which an estimate would jump about
READ_BACK = 5.0
MOST_SIGHTS = 512


class Pace:
    """What has been seen of a stage's progress in one attempt."""

    def __init__(self) -> None:
        self._total = 0
        self._sights: list[tuple[float, int]] = []  # (seconds since the attempt began, steps done)

    def left_s(self, seconds: float, done: int, total: int) -> float | None:
        """Take in a sight; the seconds that are left after it. None until it can be known, and while the total is still growing."""
        if total != self._total or (self._sights and done < self._sights[-1][1]):
            self._total, self._sights = total, []
        if not self._sights or done > self._sights[-1][1]:
            self._sights.append((seconds, done))
        if len(self._sights) > MOST_SIGHTS:
            del self._sights[2:-1:2]
        base = self._base()
        if base is None or total <= 0:
            return None
        (before_s, before), (now_s, now) = base, self._sights[-1]
        left_s = (total - now) * (now_s - before_s) / (now - before)
        return max(left_s - (seconds - now_s), 0.0)

    def _base(self) -> tuple[float, int] | None:
        """The sight that the pace is measured from."""
        sights = self._sights[1:]
        while len(sights) > 2 and _pace(sights[0], sights[1]) * READ_BACK < _pace(sights[1], sights[-1]):
            sights = sights[1:]
        if len(sights) < 2:
            return None
        now_s, now = sights[-1]
        middle = (sights[0][1] + now) / 2
        measured = [sight for sight in sights[:-1] if now_s - sight[0] >= FEWEST_MEASURED_S]
        older = [sight for sight in measured if sight[1] <= middle]
        return older[-1] if older else measured[0] if measured else None


def _pace(before: tuple[float, int], after: tuple[float, int]) -> float:
    """Seconds a step."""
    return (after[0] - before[0]) / (after[1] - before[1])
