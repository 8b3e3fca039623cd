"""How fast an endpoint is asked: at an even rate, and not before it says so."""

import asyncio
import math
import random
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

LONGEST_WAIT_S = 900.0
FIRST_WAIT_S = 0.5
LONGEST_BACKOFF_S = 60.0


class Pace:
    """Turns of all workers: evenly spaced at ``per_minute`` (0 = at once), and none while the server wants to be left alone."""

    def __init__(self, per_minute: float) -> None:
        self.gap_s = 60 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._held_until = 0.0

    async def turn(self) -> None:
        """Wait for the next turn."""
        while (now := time.monotonic()) < self._held_until:
            await asyncio.sleep(self._held_until - now)
        mine = max(now, self._next)
        self._next = mine + self.gap_s
        await asyncio.sleep(mine - now)

    def hold(self, seconds: float) -> None:
        """Nobody asks for so many seconds."""
        self._held_until = max(self._held_until, time.monotonic() + seconds)


def retry_after_s(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, as a number or as a date; 0 where it says nothing readable.

    Raises:
        ConnectionError: it asks for more than a quarter of an hour.
    """
    text = headers.get("retry-after", "")
    seconds = _seconds(text)
    if seconds > LONGEST_WAIT_S:
        raise ConnectionError(f"the judge's endpoint asks to wait for {seconds:.0f} s: run again later, what is paid for is kept")
    return seconds


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = parsedate_to_datetime(text)
        except ValueError:
            return 0.0
        seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - datetime.now(UTC).timestamp()
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0


def backoff_s(attempt: int) -> float:
    """Seconds before another attempt: 0.5, 1, 2, ... at most 60, each times a random 0.5 to 1, so that workers do not come back at once."""
    return min(LONGEST_BACKOFF_S, FIRST_WAIT_S * 2**attempt) * random.uniform(0.5, 1)
