"""Which Prefect API a command talks to, and whether `posttrain ui` is there.

In this order: PREFECT_API_URL (or the profile in the user's own PREFECT_HOME); the server of `posttrain ui`, so that a run appears there
live; a server of this command alone, which ends with it. All of the last two write to the same database in the output folder.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from flows.cli.servers import LOOPBACK, Server, answers, free_port, stopping
from models.run import write_atomic
from tasks.credentials import NOT_ALLOWED, NOT_KNOWN, require_prefect
from tasks.home import configure_environment, home

PREFECT_PORT = 4200


class Addresses(BaseModel):
    """Where a running `posttrain ui` serves."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prefect: str
    mlflow: str

    @property
    def prefect_api(self) -> str:
        return f"{self.prefect}/api"


# `posttrain ui` holds the lock as long as it lives, so the addresses of one that was killed are known to be stale.


def state_file() -> Path:
    """The addresses of the running `posttrain ui`."""
    return home() / "ui.json"


def lock_file() -> Path:
    """Locked by the running `posttrain ui`."""
    return home() / "ui.lock"


def write_addresses(addresses: Addresses) -> None:
    """Publish the addresses; the caller holds the lock."""
    write_atomic(state_file(), addresses.model_dump_json())


def served_addresses() -> Addresses | None:
    """The addresses of the running `posttrain ui`, None if there is none."""
    if not state_file().exists() or _is_free(lock_file()):
        return None
    try:
        return Addresses.model_validate_json(state_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _is_free(path: Path) -> bool:
    import fcntl

    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


@contextmanager
def known_prefect() -> Iterator[bool]:
    """Choose the Prefect API that the user names or `posttrain ui` serves, and tell whether there is one. Before Prefect is imported."""
    user_home = os.environ.get("PREFECT_HOME")
    configure_environment()
    if os.environ.get("PREFECT_API_URL") or profile_names_an_api(user_home):
        yield True
        return
    served = served_addresses()
    if served is None or not answers(f"{served.prefect_api}/health"):
        yield False
        return
    with _environment(PREFECT_API_URL=served.prefect_api, PREFECT_UI_URL=served.prefect, POSTTRAIN_MLFLOW_URL=served.mlflow):
        yield True


@contextmanager
def prefect_session() -> Iterator[Callable[[], None]]:
    """Choose the Prefect API. To be entered before Prefect is imported; the yielded function waits for it, before the first flow.

    A server of our own starts while the caller goes on importing, and is stopped with everything that it started, also by the
    kernel if this process is killed. Prefect's own temporary server would be left behind.
    """
    with known_prefect() as is_known:
        if is_known:
            yield require_prefect
            return
    server = temporary_server()
    # Links in records lead to where `posttrain ui` will be, not to this server, which nobody can visit later.
    later = f"http://{LOOPBACK}:{PREFECT_PORT}"
    with _environment(PREFECT_API_URL=f"{server.url}/api", PREFECT_UI_URL=later), stopping([server]), ExitStack() as stack:

        def wait() -> None:
            server.wait_until_it_answers()
            stack.enter_context(_without_heartbeats())

        server.start()
        try:
            yield wait
        finally:
            deliver()
    if server.log.exists() and server.log.stat().st_size == 0:
        server.log.unlink()


def deliver() -> None:
    """Send what Prefect still holds of logs and events: at the end of the process, where it would, its API is gone."""
    if "prefect" not in sys.modules:
        return
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (APILogWorker, EventsWorker):
        worker.drain_all(timeout=10)


def require_mlflow() -> None:
    """Return if MLflow lets us in, or is away: then what is to be recorded is kept, and sent by a later run.

    Raises:
        ValueError: its server is there and does not let us in; says which variable to set.
    """
    from tasks import tracking
    from tasks.recorder import Refused, Unreachable

    if not tracking.tracking_uri().startswith("http"):
        return
    try:
        tracking.connected().ask(lambda client: client.search_experiments(max_results=1))
    except (Unreachable, Refused) as error:
        if getattr(error.__cause__, "error_code", None) in NOT_KNOWN | NOT_ALLOWED:
            raise ValueError(str(error)) from None


def _without_heartbeats() -> AbstractContextManager[object]:
    """Prefect's settings for a flow whose server ends with it: a heartbeat that nobody sees would cost each flow run a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings

    return temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None})


def temporary_server() -> Server:
    """A Prefect API without pages and background services, as Prefect itself starts one for a flow without a server."""
    url = f"http://{LOOPBACK}:{free_port()}"
    application = ["--factory", "prefect.server.api.server:create_app", "--lifespan", "on", "--log-level", "error"]
    return Server(
        name="The Prefect API",
        command=[sys.executable, "-m", "uvicorn", *application, "--host", LOOPBACK, "--port", url.rpartition(":")[2]],
        url=url,
        health=f"{url}/api/health",
        log=home() / "logs" / f"prefect-{os.getpid()}.log",
        environment={"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"},
    )


def profile_names_an_api(user_home: str | None) -> bool:
    """Whether a Prefect home of the user's own has a profile with an API. Prefect is asked only if its file mentions one."""
    profiles = Path(user_home).expanduser() / "profiles.toml" if user_home else None
    if profiles is None or not profiles.is_file() or "PREFECT_API_URL" not in profiles.read_text(encoding="utf-8"):
        return False
    from prefect.settings import PREFECT_API_URL

    return bool(PREFECT_API_URL.value())


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Environment variables for a while; those that the user has set stay as they are."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
