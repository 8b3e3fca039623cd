"""What is seen while a flow runs: a bar for the stage that runs, a line for each that has ended, Prefect's warnings between them."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.text import Text

from flows.cli.terminal import duration, err, plain
from tasks import outlook, process
from tasks.process import Progress
from tasks.wording import about, rates_in_words

PLAIN_EVERY_S = 15.0
# Prefect says three times that a stage failed: once is enough, since the command says it at the end.
_TOLD_AT_THE_END = ("Encountered exception during execution", "Finished in state", "Crash detected!")
MARKS = {"hit": ("=", "green"), "computed": ("+", "bold green"), "resumed": ("+", "bold green"), "failed": ("!", "bold red")}


class Display:
    """Shows the progress of stages, as bars in a terminal and as lines elsewhere."""

    def __init__(self, console: Console = err) -> None:
        self.console = console
        self._bars = Bars(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rates]}", markup=False, style="cyan"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}", markup=False, style="dim"),
            console=console,
            transient=True,
            refresh_per_second=4,  # drawing takes time from the training beside it
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._said: dict[str, float] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, text: str | Text) -> None:
        """A line above the bars."""
        self.console.print(text, soft_wrap=True)

    def show(self, progress: Progress) -> None:
        """Take in what a stage says. Called from the threads of the stages."""
        with self._lock:
            if progress.state in MARKS:
                self._end(progress)
            elif self.console.is_terminal:
                self._draw(progress)
            else:
                self._mention(progress)

    def _end(self, progress: Progress) -> None:
        task = self._tasks.pop(progress.label, None)
        if task is not None:
            self._bars.remove_task(task)
        mark, style = MARKS[progress.state]
        # Why a stage failed is said at the end.
        why = {"computed": progress.why, "hit": f"computed before, {progress.why}", "resumed": f"resumed {progress.why}"}
        words = plain(why.get(progress.state, progress.state)).rstrip(", ")
        self.say(Text.assemble((f"{mark} ", style), f"{plain(progress.label):<28} {duration(progress.seconds):>12}  ", (words, "dim")))

    def _draw(self, progress: Progress) -> None:
        name = _name(progress)
        task = self._tasks.get(progress.label)
        if task is None:
            task = self._tasks[progress.label] = self._bars.add_task(name, total=None, rates="", left="")
        rates, left = rates_in_words(progress.rates), _left(progress)
        self._bars.update(task, description=name, total=progress.total or None, completed=progress.done, rates=rates, left=left)

    def _mention(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._said.get(progress.label + progress.state, -PLAIN_EVERY_S) < PLAIN_EVERY_S:
            return
        self._said[progress.label + progress.state] = now
        steps = f" {progress.done}/{progress.total}" if progress.total else ""
        parts = [f"  {progress.label}: {progress.state}{steps}", rates_in_words(progress.rates), _left(progress)]
        self.say(", ".join(filter(None, parts)))


def _name(progress: Progress) -> str:
    """`sft (stage 3 of 9), waiting`."""
    view = outlook.current()
    place = view.place(progress.label) if view is not None else ""
    return progress.label + (f" ({place})" if place else "") + (", waiting" if progress.state == "waiting" else "")


def _left(progress: Progress) -> str:
    return f"{about(progress.left_s)} left" if progress.left_s is not None and progress.state == "running" else ""


class _Lines(logging.Handler):
    """Log records as lines of the display. The traceback of a failed stage is in Prefect and, with --verbose, here."""

    def __init__(self, display: Display, verbose: bool) -> None:
        super().__init__(logging.INFO if verbose else logging.WARNING)
        self.display = display
        self.verbose = verbose

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "story", False) or (not self.verbose and record.getMessage().startswith(_TOLD_AT_THE_END)):
            return  # the display tells the same in its own way, or the command does at the end
        text = record.getMessage() if not (self.verbose and record.exc_info) else self.format(record)
        style = "red" if record.levelno >= logging.ERROR else "yellow" if record.levelno >= logging.WARNING else "dim"
        self.display.say(Text(plain(text), style=style))


@contextmanager
def showing(verbose: bool) -> Iterator[Display]:
    """Show the progress of every stage called inside. Prefect's own console output goes through the same display."""
    display = Display()
    previous = process.on_progress
    process.on_progress = display.show
    handlers = _replace_console_handlers(_Lines(display, verbose))
    try:
        with display:
            yield display
    finally:
        process.on_progress = previous
        for logger, old in handlers:
            logger.handlers = old


def _replace_console_handlers(mine: logging.Handler) -> list[tuple[logging.Logger, list[logging.Handler]]]:
    """Put our handler where Prefect prints; returns what was there."""
    from prefect.logging.handlers import PrefectConsoleHandler

    named = [logger for logger in logging.Logger.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
    replaced = []
    for logger in (logging.getLogger(), *named):
        if any(isinstance(handler, PrefectConsoleHandler) for handler in logger.handlers):
            replaced.append((logger, logger.handlers))
            logger.handlers = [mine if isinstance(handler, PrefectConsoleHandler) else handler for handler in logger.handlers]
    return replaced
