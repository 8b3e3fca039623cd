"""A line now and then while a judge is at work: for the reader of the log, and as the stage's sign of life."""

import time

EVERY_S = 60.0


class Told:
    """Says at most once a minute how far a judge is."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """So many of so many questions are answered."""
        if time.monotonic() - self._last >= EVERY_S:
            self._last = time.monotonic()
            print(f"judge: {done} of {total} questions answered", flush=True)
