"""`posttrain serve`: registers the deployments with a Prefect server and runs their runs on this machine, each in a process of its own.

At Ctrl-C or SIGTERM nothing new is started. Every run gets SIGTERM: its stage saves a checkpoint, and the run ends as Cancelled; one that
takes longer than 30 s is killed, and goes on from its last checkpoint like any other. Schedules stay: their runs wait for the next `serve`.
"""

from __future__ import annotations

import _thread
import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from flows.cli.servers import START_S, Server, ServerFailed, stopping
from flows.cli.session import known_prefect, served_addresses
from flows.cli.terminal import complain, err, out
from flows.cli.ui import looking_for_dead_runs
from tasks.credentials import require_prefect, without_credentials
from tasks.home import home

if TYPE_CHECKING:
    from flows.deployments import Deployment

FAILED = 1
POLL_S = 2.0
NO_SERVER = "No Prefect server is running: start `posttrain ui` in another terminal, give --ui, or name a server with PREFECT_API_URL."


def serve(names: Sequence[str], with_ui: bool) -> int:
    """Serve until Ctrl-C. Returns the exit code.

    Raises:
        ValueError: a name is unknown, or no Prefect server answers.
    """
    interrupts = _Interrupts()
    try:
        with _ui() if with_ui else nullcontext(), known_prefect() as found:
            if not found:
                raise ValueError(NO_SERVER)
            return _serve(names, interrupts)
    except ServerFailed as error:
        complain(str(error))
        return FAILED


class _Interrupts:
    """Ctrl-C calls a function. The signal stays blocked in this process and in those that it starts, which inherit that: a terminal
    sends it to all of them, and a run would be interrupted a second time while it saves."""

    def __init__(self) -> None:
        self.call: Callable[[], None] = _thread.interrupt_main
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # before there are other threads: it would be delivered to those
        threading.Thread(target=self._wait, name="interrupts", daemon=True).start()

    def _wait(self) -> None:
        while True:
            signal.sigwait({signal.SIGINT})
            self.call()


@contextmanager
def _ui() -> Iterator[None]:
    """`posttrain ui` as long as the block lasts, unless it runs already."""
    if served_addresses() is not None:
        yield
        return
    server = Server("posttrain ui", [sys.executable, "-m", "flows.cli", "ui"], "", "", home() / "logs" / "ui.log", {})
    with stopping([server]):
        server.start()
        end = time.monotonic() + START_S
        with err.status("Starting Prefect and MLflow"):
            while served_addresses() is None:
                if not server.alive or time.monotonic() > end:
                    raise ServerFailed(f"posttrain ui did not start. {server.last_words()}")
                time.sleep(0.1)
        yield


def _serve(names: Sequence[str], interrupts: _Interrupts) -> int:
    from tasks.locks import try_lock  # brings Prefect with it, which reads the environment then

    lock = try_lock(home() / "serve.lock")
    if lock is None:
        complain(f"another `posttrain serve` is at work on {home()}: use that one, or stop it first.")
        return FAILED
    try:
        with err.status("Registering"):
            require_prefect()
            from flows.deployments import chosen

            deployments = chosen(names)
        with looking_for_dead_runs():
            return asyncio.run(_execute(deployments, interrupts))
    finally:
        os.close(lock)


async def _execute(deployments: Sequence[Deployment], interrupts: _Interrupts) -> int:
    from prefect.runner import Runner

    runner = Runner(name="posttrain", query_seconds=POLL_S, pause_on_shutdown=False, limit=None)
    for deployment in deployments:
        await runner.aadd_deployment(deployment.for_serving())
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    interrupts.call = lambda: loop.call_soon_threadsafe(stop.set)  # type: ignore[assignment]
    running = asyncio.create_task(runner.start())
    while not runner.started and not running.done():
        await asyncio.sleep(0.05)
    loop.add_signal_handler(signal.SIGTERM, stop.set)  # now, since the runner has just set one that waits for ever
    _say(deployments)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait([running, stopped], return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if not running.done():
        err.print("Stopping: every run saves and ends. Retry on a run's page goes on from there.", soft_wrap=True)
        await runner.astop()
    try:
        await running
    except Exception:
        require_prefect()  # after a minute and a half without it the runner gives up: that is said in a line
        raise
    return 0


def _say(deployments: Sequence[Deployment]) -> None:
    from prefect.settings import PREFECT_UI_URL

    width = max(len(deployment.name) for deployment in deployments)
    for deployment in deployments:
        out.print(f"  {deployment.name:<{width}}  {deployment.description}", soft_wrap=True, markup=False)
    out.print(f"Start runs at {without_credentials(str(PREFECT_UI_URL.value()))}/deployments. Ctrl-C ends.", soft_wrap=True, markup=False)
