"""`posttrain ui`: Prefect's and MLflow's servers on loopback, for as long as the command runs."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from flows.cli.servers import LOOPBACK, Server, ServerFailed, free_port, stopping
from flows.cli.session import Addresses, lock_file, served_addresses, write_addresses
from flows.cli.terminal import complain, err, out
from tasks.credentials import without_credentials
from tasks.home import configure_environment, home

FAILED = 1
TERMINATED = 128 + signal.SIGTERM


def ui(prefect_port: int, mlflow_port: int) -> int:
    """Serve until Ctrl-C. A server that the user has elsewhere (PREFECT_API_URL, MLFLOW_TRACKING_URI) is named, not started."""
    configure_environment()
    from tasks.locks import try_lock  # brings Prefect with it

    lock = try_lock(lock_file())
    if lock is None:
        return _say_running()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return _serve(prefect_port, mlflow_port)
    finally:
        os.close(lock)


def _terminated(signum: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _say_running() -> int:
    served = served_addresses()
    if served is None:
        complain("another `posttrain ui` is starting; try again in a moment.")
        return FAILED
    out.print("It is running already:")
    _print(served)
    return 0


def _serve(prefect_port: int, mlflow_port: int) -> int:
    from tasks import tracking

    api = os.environ.get("PREFECT_API_URL")
    prefect = None if api else prefect_server(free_port(prefect_port))
    mlflow_uri = tracking.tracking_uri()
    mlflow = None if mlflow_uri.startswith("http") else mlflow_server(free_port(mlflow_port), mlflow_uri)
    servers = [server for server in (prefect, mlflow) if server is not None]
    addresses = Addresses(
        prefect=prefect.url if prefect else without_credentials(str(api)).removesuffix("/").removesuffix("/api"),
        mlflow=mlflow.url if mlflow else without_credentials(mlflow_uri),
    )
    with stopping(servers):
        try:
            _start(prefect, mlflow)
            write_addresses(addresses)
            _print(addresses)
            out.print("Ctrl-C stops both." if len(servers) == 2 else "Ctrl-C ends.")
            with looking_for_dead_runs(f"{prefect.url}/api" if prefect else None):
                _watch(servers)
        except ServerFailed as error:
            complain(str(error))
            return FAILED
        except KeyboardInterrupt:
            err.print("\nStopping", soft_wrap=True)
        return 0


def _start(prefect: Server | None, mlflow: Server | None) -> None:
    """Start both and wait until they answer. Runs of processes that died are closed before MLflow's server shows them."""
    from tasks import tracking

    with err.status("Starting Prefect and MLflow"):
        if prefect is not None:
            prefect.start()
        killed = tracking.sweep()
        if mlflow is not None:
            mlflow.start()
        for server in (prefect, mlflow):
            if server is not None:
                server.wait_until_it_answers()
    if killed:
        out.print(f"Marked as killed in MLflow, since their processes are gone: {', '.join(killed)}", markup=False, soft_wrap=True)


def _watch(servers: list[Server]) -> None:
    """Wait for Ctrl-C. Raises ServerFailed if a server ends by itself."""
    while True:
        for server in servers:
            if not server.alive:
                raise ServerFailed(f"{server.name} ended. {server.last_words()}")
        time.sleep(0.5)


@contextmanager
def looking_for_dead_runs(api: str | None = None) -> Iterator[None]:
    """Meanwhile, runs whose process dies are not left Running."""
    from tasks.watch import watch_runs

    stop = threading.Event()

    def tell(line: str) -> None:
        out.print(line, markup=False, soft_wrap=True)

    threading.Thread(target=watch_runs, args=(stop,), kwargs={"api": api, "tell": tell}, name="watch-runs", daemon=True).start()
    try:
        yield
    finally:
        stop.set()


def _print(addresses: Addresses) -> None:
    out.print(f"  Prefect  {addresses.prefect}\n  MLflow   {addresses.mlflow}", soft_wrap=True)


def prefect_server(port: int) -> Server:
    """Prefect's server with its pages, on the database that runs write to.

    The first version of the pages: the second one calls a third party from the browser even with analytics off.
    """
    url = f"http://{LOOPBACK}:{port}"
    return Server(
        name="The Prefect server",
        command=[sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)],
        url=url,
        health=f"{url}/api/health",
        log=home() / "logs" / "ui-prefect.log",
        environment={
            "PREFECT_SERVER_UI_V2_ENABLED": "false",
            "PREFECT_SERVER_UI_API_URL": f"{url}/api",  # without it the pages ask the default port for their data
            "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": f"{url},http://localhost:{port}",  # no other page in the browser may read it
            "PREFECT_UI_URL": url,
        },
    )


def mlflow_server(port: int, store_uri: str) -> Server:
    """MLflow's server on the default store, with one worker: SQLite has one writer."""
    url = f"http://{LOOPBACK}:{port}"
    artifacts = home() / "mlflow" / "artifacts"
    store = ["--backend-store-uri", store_uri, "--artifacts-destination", artifacts.as_uri(), "--serve-artifacts"]
    return Server(
        name="The MLflow server",
        command=[sys.executable, "-m", "mlflow", "server", *store, "--host", LOOPBACK, "--port", str(port), "--workers", "1"],
        url=url,
        health=f"{url}/health",
        log=home() / "logs" / "ui-mlflow.log",
        environment={
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # workers for hosted judges: seconds of start-up, and not ours
            "MLFLOW_GUNICORN_OPTS": "",  # may bind a second address
        },
    )
