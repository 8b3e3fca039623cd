"""`posttrain watch`: beside a worker, on a machine where neither `posttrain ui` nor `posttrain serve` runs."""

from __future__ import annotations

import os
import signal
import threading

from flows.cli.terminal import out
from tasks.home import configure_environment


def watch(once: bool) -> int:
    """Look for runs of this machine whose process died, until SIGTERM or Ctrl-C, or once.

    Raises:
        ValueError: no Prefect server is named.
    """
    configure_environment()
    if not os.environ.get("PREFECT_API_URL"):
        raise ValueError("PREFECT_API_URL is not set: name the server whose runs this machine's workers carry out")
    from tasks import watch as runs

    if once:
        for line in runs.sweep():
            _say(line)
        return 0
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda signum, frame: stop.set())
    runs.watch_runs(stop, tell=_say)
    return 0


def _say(line: str) -> None:
    out.print(line, markup=False, soft_wrap=True)
