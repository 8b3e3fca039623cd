"""Servers of a command: they answer, they end with everything they started, and a failure shows the end of their log."""

import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flows.cli import session
from flows.cli.servers import LOOPBACK, Server, ServerFailed, answers, free_port, stopping
from flows.cli.session import Addresses, prefect_session, served_addresses, write_addresses
from tasks.credentials import require_prefect
from tasks.locks import try_lock

ROOT = Path(__file__).resolve().parents[2]


def server(tmp_path: Path, code: str | None = None) -> Server:
    url = f"http://{LOOPBACK}:{free_port()}"
    command = [sys.executable, "-m", "http.server", "--bind", LOOPBACK, url.rpartition(":")[2]]
    own = [sys.executable, "-c", textwrap.dedent(code)] if code else command
    return Server("The test server", own, url, url, tmp_path / "logs" / "server.log", {})


def exists(pid: int) -> bool:
    """True while a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_pid(path: Path) -> int:
    end = time.monotonic() + 20
    while not (path.exists() and path.read_text().strip()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return int(path.read_text())


def test_a_server_answers_until_it_is_stopped(tmp_path):
    one = server(tmp_path)
    with stopping([one]):
        one.start()
        one.wait_until_it_answers(20)
        assert one.alive and answers(one.url)
    assert not one.alive and not answers(one.url)


def test_a_server_that_ends_shows_the_end_of_its_log(tmp_path):
    one = server(tmp_path, "print('no such table: flow_run'); raise SystemExit(3)")
    one.start()
    with pytest.raises(ServerFailed, match=r"ended before it answered(.|\n)*server.log(.|\n)*no such table: flow_run"):
        one.wait_until_it_answers(20)


def test_a_server_that_does_not_answer_is_not_waited_for_for_ever(tmp_path):
    one = server(tmp_path, "import time; time.sleep(60)")
    with stopping([one]):
        one.start()
        with pytest.raises(ServerFailed, match="did not answer in 0 s"):
            one.wait_until_it_answers(0.3)


def test_stopping_ends_what_a_server_started_and_what_ignores_sigterm(tmp_path):
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    one = server(
        tmp_path,
        f"""
        import pathlib, subprocess, sys, time
        worker = subprocess.Popen([sys.executable, "-c", {stubborn!r}], stdout=subprocess.PIPE)
        worker.stdout.readline()
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(worker.pid))
        time.sleep(60)
        """,
    )
    one.start()
    worker = wait_for_pid(tmp_path / "pid")
    one.ask_to_stop()
    one.wait_for_end(patience_s=0.5)
    assert not one.alive and not exists(worker)


def test_a_server_dies_with_the_process_that_started_it(tmp_path):
    code = f"""
        import pathlib, sys, time
        from flows.cli.servers import Server
        one = Server("x", [sys.executable, "-c", "import time; time.sleep(60)"], "", "", pathlib.Path({str(tmp_path / "log")!r}), {{}})
        one.start()
        pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(one._process.pid))
        time.sleep(60)
        """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], cwd=ROOT)
    child = wait_for_pid(tmp_path / "pid")
    assert exists(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 10
    while exists(child):
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_taken_port_is_replaced():
    with socket.socket() as taken:
        taken.bind((LOOPBACK, 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert free_port(port) not in (0, port)
    assert free_port(port) == port


# Which Prefect API


@pytest.fixture
def no_server(home, monkeypatch):
    """A session that would start a server fails: these tests choose another API."""
    monkeypatch.delenv("PREFECT_HOME", raising=False)

    def forbidden() -> None:
        raise AssertionError("a server was started")

    monkeypatch.setattr(session, "temporary_server", forbidden)


def test_the_api_that_the_user_names_is_used(no_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    with prefect_session() as wait:
        assert wait is require_prefect
        assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"


def test_a_profile_of_the_users_own_prefect_home_counts(home, tmp_path, monkeypatch):
    (tmp_path / "profiles.toml").write_text('active = "a"\n[profiles.a]\nPREFECT_LOGGING_LEVEL = "INFO"\n')
    assert not session.profile_names_an_api(str(tmp_path))
    assert not session.profile_names_an_api(str(tmp_path / "nowhere"))
    assert not session.profile_names_an_api(None)


def test_the_served_api_is_used_while_its_lock_is_held_and_it_answers(no_server, home, tmp_path):
    one = server(tmp_path)
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "health").write_text("true")
    one.command = [*one.command, "--directory", str(tmp_path)]
    home.mkdir(exist_ok=True)
    with stopping([one]):
        one.start()
        one.wait_until_it_answers(20)
        write_addresses(Addresses(prefect=one.url, mlflow="http://127.0.0.1:5999"))
        assert served_addresses() is None  # nobody holds the lock: whoever wrote this was killed
        lock = try_lock(session.lock_file())
        assert lock is not None
        with prefect_session():
            assert os.environ["PREFECT_API_URL"] == f"{one.url}/api"
            assert os.environ["POSTTRAIN_MLFLOW_URL"] == "http://127.0.0.1:5999"
        os.close(lock)
    assert "POSTTRAIN_MLFLOW_URL" not in os.environ


def test_without_any_api_a_server_is_started_and_stopped(home, tmp_path, monkeypatch):
    one = server(tmp_path)
    monkeypatch.setattr(session, "temporary_server", lambda: one)
    with prefect_session() as wait:
        wait()
        assert os.environ["PREFECT_API_URL"] == f"{one.url}/api" and one.alive
    assert not one.alive and "PREFECT_API_URL" not in os.environ
