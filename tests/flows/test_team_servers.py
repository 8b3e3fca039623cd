"""A team's servers as they are started, with passwords: who is let in, what a run leaves there, who is told of its end.

PostgreSQL is used where its binaries are found, as a team would; else SQLite.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from flows import notifications
from flows.cli.servers import LOOPBACK, Server, free_port, stopping
from flows.cli.session import require_mlflow
from tasks.credentials import require_prefect

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = 'tr0ub4dor: & "3" $(x)\''
DATABASE_PASSWORD = 'p@ss/w%rd "q" \':x'
# What a member's machine does: a tracked run, then one that fails. Both links would show a password that the addresses hold.
RUNS = """
from prefect import flow, tags
from tasks.tracking import pipeline

@flow
def tracked():
    with pipeline("tracked", {"a": 1}):
        return 1

@flow(flow_run_name='a "run"')
def failing():
    raise RuntimeError('boom "x"\\n</b>')

tracked()
failing(return_state=True)
with tags("posttrain"):
    failing(return_state=True)
"""


def postgres_binaries() -> Path | None:
    """The folder of initdb and pg_ctl; Debian leaves it out of PATH."""
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((folder for folder in folders if (folder / "pg_ctl").exists()), None)


@contextmanager
def postgres(binaries: Path) -> Iterator[int]:
    """A PostgreSQL of its own with the databases of both servers; yields its port. initdb refuses root, so it runs as another user."""
    port = free_port()
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.getuid() == 0 else {}
    environment = {"PATH": os.environ["PATH"], "PGPASSWORD": DATABASE_PASSWORD, "LC_ALL": "C.UTF-8"}

    def call(name: str, *arguments: str) -> None:
        subprocess.run([binaries / name, *arguments], check=True, cwd="/", env=environment, stdout=subprocess.DEVNULL, **user)

    with tempfile.TemporaryDirectory() as folder:
        password, data = Path(folder, "password"), f"{folder}/data"
        password.write_text(DATABASE_PASSWORD)
        if user:
            shutil.chown(folder, "nobody", "nogroup")
            shutil.chown(password, "nobody", "nogroup")
        call("initdb", "-D", data, "-U", "posttrain", f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8", "--no-sync")
        settings = f"-p {port} -c listen_addresses={LOOPBACK} -c unix_socket_directories='' -c fsync=off"
        call("pg_ctl", "-D", data, "-w", "-o", settings, "-l", f"{folder}/log", "start")
        try:
            for database in ("mlflow", "prefect"):
                call("createdb", "-h", LOOPBACK, "-p", str(port), "-U", "posttrain", database)
            yield port
        finally:
            call("pg_ctl", "-D", data, "-m", "immediate", "stop")


class Team:
    """The two servers, an HTTP receiver, and the environment of somebody who knows the passwords."""

    def __init__(self, folder: Path, database: Mapping[str, str]) -> None:
        self.prefect, self.mlflow = (f"http://{LOOPBACK}:{free_port()}" for _ in range(2))
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
        own = {**kept, "PYTHON": sys.executable, "POSTTRAIN_HOME": str(folder / "the servers"), "NO_PROXY": "*", **database}
        mlflow = {
            "MLFLOW_PORT": self.mlflow.rpartition(":")[2],
            "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "kO3sdf9asdf0as",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        prefect = {"PREFECT_SERVER_API_PORT": self.prefect.rpartition(":")[2], "PREFECT_SERVER_API_AUTH_STRING": f"ada:{PASSWORD}"}
        scripts = ROOT / "mlflow"
        self.servers = [
            Server("MLflow", [f"{scripts}/serve.sh", "--workers=1"], "", f"{self.mlflow}/health", folder / "m.log", {**own, **mlflow}),
            Server("Prefect", [f"{scripts}/prefect.sh"], "", f"{self.prefect}/api/health", folder / "p.log", {**own, **prefect}),
        ]
        self.member = {
            "POSTTRAIN_HOME": str(folder / "member"),
            "PREFECT_API_URL": f"{self.prefect}/api",
            "PREFECT_API_AUTH_STRING": f"ada:{PASSWORD}",
            "PREFECT_UI_URL": with_password(self.prefect, "ada"),
            "MLFLOW_TRACKING_URI": with_password(self.mlflow, "admin"),
        }


def with_password(url: str, user: str) -> str:
    return url.replace("://", f"://{user}:{quote(PASSWORD, safe='')}@")


def ask(
    url: str, user: str = "", password: str = "", body: dict | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """Status and text of an answer."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    if user:
        headers["Authorization"] = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    request = urllib.request.Request(url, json.dumps(body).encode() if body is not None else None, headers)
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def csrf(team: Team) -> dict[str, str]:
    """What Prefect's own clients send with every change."""
    token = json.loads(ask(f"{team.prefect}/api/csrf-token?client=tests", "ada", PASSWORD)[1])["token"]
    return {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "tests"}


@pytest.fixture(scope="module")
def received() -> Iterator[tuple[str, list[tuple[str, dict]]]]:
    """The address of a receiver, and what was posted to it."""
    messages: list[tuple[str, dict]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            messages.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Not in the output of the tests."""

    with HTTPServer((LOOPBACK, 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://{LOOPBACK}:{server.server_port}", messages
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    folder = tmp_path_factory.mktemp("team")
    binaries = postgres_binaries()
    with ExitStack() as stack:
        database: dict[str, str] = {}
        if binaries is not None:
            pytest.importorskip("psycopg2", reason="MLflow on PostgreSQL needs pip install -e '.[team]'")
            port = stack.enter_context(postgres(binaries))
            database["PGPASSWORD"] = DATABASE_PASSWORD
            database["MLFLOW_BACKEND_STORE_URI"] = f"postgresql://posttrain@{LOOPBACK}:{port}/mlflow"
            database["PREFECT_API_DATABASE_CONNECTION_URL"] = f"postgresql+asyncpg://posttrain@{LOOPBACK}:{port}/prefect"
        team = Team(folder, database)
        stack.enter_context(stopping(team.servers))
        for server in team.servers:
            server.start()
        for server in team.servers:
            server.wait_until_it_answers()
        yield team


@pytest.fixture
def as_member(team, monkeypatch):
    """This process talks to the team's servers, as somebody who knows the passwords, or thinks so."""
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    @contextmanager
    def acting(prefect: str = f"ada:{PASSWORD}", mlflow: str = PASSWORD) -> Iterator[None]:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", team.mlflow)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", mlflow)
        with temporary_settings({PREFECT_API_URL: f"{team.prefect}/api", PREFECT_API_AUTH_STRING: prefect}):
            yield

    return acting


def test_nobody_is_let_in_without_the_password(team):
    experiments = f"{team.mlflow}/api/2.0/mlflow/experiments/search"
    assert [ask(experiments, *who, body={"max_results": 1})[0] for who in ((), ("admin", "wrong"), ("admin", PASSWORD))] == [401, 401, 200]
    version = f"{team.prefect}/api/admin/version"
    assert [ask(version, *who)[0] for who in ((), ("ada", "wrong"), ("ada", PASSWORD))] == [401, 401, 200]


def test_who_is_not_let_in_is_told_which_variable_to_set(team, as_member, monkeypatch):
    with as_member():
        require_prefect()
        require_mlflow()
    with as_member(prefect="ada:wr0ng-secret", mlflow="wr0ng-secret"):
        with pytest.raises(ValueError, match="PREFECT_API_AUTH_STRING is wrong") as refused:
            require_prefect()
        assert "wr0ng" not in str(refused.value)
        with pytest.raises(ValueError, match="MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD is wrong") as refused:
            require_mlflow()
        assert "wr0ng" not in str(refused.value)
        monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
        with pytest.raises(ValueError, match=r"set MLFLOW_TRACKING_PASSWORD$"):
            require_mlflow()
    with as_member(prefect=""), pytest.raises(ValueError, match="PREFECT_API_AUTH_STRING is not set: it is USER:PASSWORD"):
        require_prefect()


@pytest.mark.parametrize("kind", ["process", "docker", "kubernetes"])
def test_the_server_takes_the_job_templates(team, kind):
    pool = {"name": f"{kind}-pool", "type": kind, "base_job_template": json.loads((ROOT / "flows" / "pools" / f"{kind}.json").read_text())}
    assert ask(f"{team.prefect}/api/work_pools/", "ada", PASSWORD, body=pool)[0] == 403  # as a page elsewhere in the browser would
    status, answer = ask(f"{team.prefect}/api/work_pools/", "ada", PASSWORD, body=pool, headers=csrf(team))
    assert status == 201 and json.loads(answer)["base_job_template"] == pool["base_job_template"]


def test_runs_are_recorded_without_a_password_in_a_link_and_a_failure_is_told(team, as_member, received):
    address, messages = received
    with as_member():
        notifications.install(notifications.webhook_block(f"{address}/hook/s3cr3t"), ["failed"])
        notifications.install(notifications.webhook_block(f"{address}/hook/s3cr3t"), ["failed", "completed"])  # replaces, never doubles
        with pytest.raises(ValueError, match="'slack-webhook/no'"):
            notifications.saved_block("slack-webhook/no")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    done = subprocess.run(
        [sys.executable, "-c", RUNS], cwd=ROOT, env={**environment, **team.member}, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr

    artifacts = json.loads(ask(f"{team.prefect}/api/artifacts/filter", "ada", PASSWORD, body={}, headers=csrf(team))[1])
    links = [artifact["data"] for artifact in artifacts if artifact["key"] == "mlflow-run"]
    assert len(links) == 1 and f"({team.mlflow}/#/experiments/" in links[0]
    run_id = links[0].rpartition("/runs/")[2].partition(")")[0]
    run = json.loads(ask(f"{team.mlflow}/api/2.0/mlflow/runs/get?run_id={run_id}", "admin", PASSWORD)[1])["run"]
    tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
    assert run["info"]["status"] == "FINISHED" and tags["prefect.flow_run_url"].startswith(f"{team.prefect}/runs/flow-run/")
    assert not [text for text in (*links, *tags.values()) if quote(PASSWORD, safe="") in text]

    end = time.monotonic() + 60
    while not messages and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(1)  # for one too many
    assert len(messages) == 1, "exactly the tagged run is told of"
    path, message = messages[0]
    assert path == "/hook/s3cr3t" and message["text"].startswith('a "run": Failed\n') and 'boom "x"\n</b>' in message["text"]
    assert f"{team.prefect}/runs/flow-run/" in message["text"]
