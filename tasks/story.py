"""What a run's log tells: a line for each stage with what it did and why, and one for the run at its end.

curate: hit, artifact 3fa9c1d2e4f5 made by quickstart-1
sft: computed in 3 min 12 s after waiting 40 s for the device, because sft.learning_rate changed 0.0001 -> 0.0002 since quickstart-1
dpo: resumed after update 120, computed in 2 min 05 s (attempt 2; before: dpo was killed by SIGKILL)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from tasks.reasons import Cause
from tasks.registry import Outcome
from tasks.store import Artifact
from tasks.wording import duration, one_line

SHORTEST_WAIT_S = 1.0  # that is told
LONGEST_NAME = 100
LONGEST_ERROR = 240
# Marks records of the story: the command line shows the same in its own way, and must not show it twice.
STORY = {"story": True}


def run_logger() -> Any:
    """The log of the Prefect run that the caller is part of; outside of one, ours."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("posttrain")


def tell_line(logger: Any, text: str) -> None:
    """One line of the story."""
    logger.log(logging.INFO, "%s", one_line(text, 2000), extra=STORY)


class StageStory:
    """What happens in one call of a stage.

    find_cause: why it has an outcome, "hit", or "running" where the cache was found empty; asked before the work starts.
    """

    def __init__(self, label: str, stage: str, find_cause: Callable[[Outcome], Cause]) -> None:
        self.label = label
        self.name = one_line(label, LONGEST_NAME)
        self.stage = stage
        self.resumed_step: int | None = None
        self._find_cause = find_cause
        self._cause: Cause | None = None
        self._failures: list[str] = []
        self._waits_s: dict[str, float] = {}
        self._waiting: tuple[str, float] | None = None

    # While it goes on

    def waits_for(self, what: str) -> None:
        """From now on the stage waits."""
        self._waiting = (what, time.monotonic())

    def goes_on(self) -> None:
        """It does not wait any more."""
        if self._waiting is not None:
            what, since = self._waiting
            self._waiting = None
            self._waits_s[what] = self._waits_s.get(what, 0.0) + time.monotonic() - since

    def attempt(self) -> None:
        """The cache was found empty: an attempt begins."""
        self.goes_on()
        self._cause = self._cause or self._find_cause("running")

    def failed(self, error: BaseException) -> None:
        """An attempt failed."""
        self._failures.append(self._said(error))

    # At the end

    def end(self, outcome: Outcome, seconds: float, artifact: Artifact | None, error: BaseException | None = None) -> tuple[str, str]:
        """The stage in one line; and only why, without its name and times.

        seconds: of the whole call, with waiting.
        """
        self.goes_on()
        if outcome == "hit":
            why = self._find_cause("hit").phrase(self.stage)
            digest = artifact.digest[:12] if artifact else ""
            return f"{self.name}: hit, artifact {digest} {why}{self._waited(', after')}", why
        if error is not None:
            said = self._failures[-1] if self._failures else self._said(error)
            attempt = f" in attempt {len(self._failures)}" if len(self._failures) > 1 else ""
            return f"{self.name}: failed after {duration(seconds)}{attempt}: {said}", said
        why = self._cause.phrase(self.stage) if self._cause else ""
        took = f"{duration(max(seconds - sum(self._waits_s.values()), 0.0))}{self._waited(' after')}"
        attempts = f" (attempt {len(self._failures) + 1}; before: {self._failures[-1]})" if self._failures else ""
        if outcome != "resumed":
            return f"{self.name}: computed in {took}, {why}{attempts}", f"{why}{attempts}"
        step = f"after update {self.resumed_step}"
        begun = f", {why}" if self._cause and self._cause.kind == "begun" else ""
        return f"{self.name}: resumed {step}{begun}, computed in {took}{attempts}", f"{step}{begun}{attempts}"

    def _waited(self, word: str) -> str:
        told = [f"{duration(seconds)} for {what}" for what, seconds in self._waits_s.items() if seconds >= SHORTEST_WAIT_S]
        return f"{word} waiting {' and '.join(told)}" if told else ""

    def _said(self, error: BaseException) -> str:
        return one_line(str(error).removeprefix(f"{self.label}: ") or type(error).__name__, LONGEST_ERROR)
