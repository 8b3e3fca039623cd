"""The scripts that start a team's servers: what they start, what they refuse, and that no value breaks out of its variable."""

import os
import subprocess
from pathlib import Path

import pytest

from tasks.home import ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
GOOD = "tr0ub4dor & 3"
MLFLOW = {
    "MLFLOW_HOST": "0.0.0.0",
    "MLFLOW_AUTH_ADMIN_PASSWORD": GOOD,
    "MLFLOW_FLASK_SERVER_SECRET_KEY": "kO3sdf9asdf0as",
    "MLFLOW_ALLOWED_HOSTS": "mlflow.example.org",
}
PREFECT = {
    "PREFECT_SERVER_API_HOST": "0.0.0.0",
    "PREFECT_SERVER_API_AUTH_STRING": f"ada:{GOOD}",
    "PREFECT_UI_URL": "https://prefect.example.org/",
}
SAFE = {"serve.sh": MLFLOW, "prefect.sh": PREFECT}
PYTHON = '#!/bin/bash\n[[ "$1" != -c ]] || exit %d\nprintf "%%s\\0" "$@" >arguments\nenv -0 >environment\n'
HOSTILE = ["a b", "a'b\"c", "$(touch broken)", "`touch broken`", "a\nb; touch broken", "--host=0.0.0.0", "*", "a\\", "\N{SNOWMAN}"]


class Started:
    """What a script would have started: the arguments and the environment of a Python that only writes them down."""

    def __init__(self, script: str, tmp_path: Path, settings: dict[str, str], arguments: tuple[str, ...] = (), has_auth: bool = True):
        python = tmp_path / "python"
        python.write_text(PYTHON % (0 if has_auth else 1))
        python.chmod(0o755)
        home = tmp_path / "the home"
        environment = {"PATH": os.environ["PATH"], "PYTHON": str(python), "POSTTRAIN_HOME": str(home), **settings}
        command = [str(ROOT / "mlflow" / script), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
        self.code, self.said = done.returncode, done.stderr
        places = [folder for folder in (tmp_path, home / "mlflow") if (folder / "arguments").exists()]
        self.arguments = (places[0] / "arguments").read_text().split("\0")[:-1] if places else []
        pairs = (places[0] / "environment").read_text().split("\0")[:-1] if places else []
        self.environment = dict(pair.split("=", 1) for pair in pairs)
        self.broken = list(tmp_path.rglob("broken"))


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("serve.sh", ["-m", "mlflow", "server", "--host=127.0.0.1", "--port=5000", "--serve-artifacts"]),
        ("prefect.sh", ["-m", "prefect", "server", "start", "--host=127.0.0.1", "--port=4200"]),
    ],
)
def test_a_server_listens_on_loopback_without_a_password(tmp_path, script, expected):
    started = Started(script, tmp_path, {})
    assert (started.code, started.arguments) == (0, expected)


def test_both_take_what_runs_write_to(tmp_path):
    mlflow = Started("serve.sh", tmp_path, {}).environment
    assert mlflow["MLFLOW_BACKEND_STORE_URI"] == f"sqlite:///{tmp_path}/the home/mlflow/mlflow.db"
    assert mlflow["MLFLOW_ARTIFACTS_DESTINATION"] == f"{tmp_path}/the home/mlflow/artifacts"
    (tmp_path / "other").mkdir()
    assert Started("prefect.sh", tmp_path / "other", {}).environment["PREFECT_HOME"] == f"{tmp_path}/other/the home/prefect"


def test_prefect_is_set_as_for_one_person_and_guarded(tmp_path):
    environment = Started("prefect.sh", tmp_path, {"PREFECT_API_URL": "http://elsewhere/api"}).environment
    server = {name: value for name, value in ENVIRONMENT.items() if name.startswith("PREFECT_SERVER_") and "EPHEMERAL" not in name}
    assert server.items() <= environment.items()
    assert environment["PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED"] == "true" and environment["PREFECT_SERVER_UI_V2_ENABLED"] == "false"
    assert environment["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200,http://localhost:4200"
    assert environment["PREFECT_SERVER_UI_API_URL"] == "http://127.0.0.1:4200/api" and "PREFECT_API_URL" not in environment


def test_a_server_for_a_team_listens_with_its_password_out_of_sight(tmp_path):
    mlflow = Started("serve.sh", tmp_path, {**MLFLOW, "MLFLOW_BACKEND_STORE_URI": "postgresql://u:hidden@h/mlflow"})
    assert mlflow.arguments[-3:] == ["--app-name", "basic-auth", "--allowed-hosts=mlflow.example.org"]
    (tmp_path / "prefect").mkdir()
    prefect = Started("prefect.sh", tmp_path / "prefect", PREFECT)
    assert prefect.arguments[-2:] == ["--host=0.0.0.0", "--port=4200"]
    assert prefect.environment["PREFECT_SERVER_UI_API_URL"] == "https://prefect.example.org/api"
    assert prefect.environment["PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS"] == "https://prefect.example.org"
    assert not [one for one in mlflow.arguments + prefect.arguments if GOOD in one or "hidden" in one]


@pytest.mark.parametrize(
    ("script", "name", "value", "complaint"),
    [
        ("serve.sh", "MLFLOW_AUTH_ADMIN_PASSWORD", "", "set MLFLOW_AUTH_ADMIN_PASSWORD"),
        ("serve.sh", "MLFLOW_AUTH_ADMIN_PASSWORD", "short-one", "shorter than 12"),
        ("serve.sh", "MLFLOW_AUTH_ADMIN_PASSWORD", "password1234", "default"),  # of older MLflow
        ("serve.sh", "MLFLOW_AUTH_ADMIN_PASSWORD", "Admin-Admin-Admin", "default"),
        ("serve.sh", "MLFLOW_AUTH_ADMIN_PASSWORD", "............", "easy to guess"),
        ("serve.sh", "MLFLOW_AUTH_ADMIN_PASSWORD", "two lines\nof a text", "control character"),
        ("serve.sh", "MLFLOW_FLASK_SERVER_SECRET_KEY", "", "MLFLOW_FLASK_SERVER_SECRET_KEY"),
        ("serve.sh", "MLFLOW_FLASK_SERVER_SECRET_KEY", "change-me-please", "MLFLOW_FLASK_SERVER_SECRET_KEY is a default"),
        ("serve.sh", "MLFLOW_ALLOWED_HOSTS", "", "MLFLOW_ALLOWED_HOSTS"),
        ("serve.sh", "PYTHON", "/nowhere/python", "no /nowhere/python"),
        ("prefect.sh", "PREFECT_SERVER_API_AUTH_STRING", "", "set PREFECT_SERVER_API_AUTH_STRING to USER:PASSWORD"),
        ("prefect.sh", "PREFECT_SERVER_API_AUTH_STRING", "admin:pass", "shorter than 12"),  # of Prefect's documentation
        ("prefect.sh", "PREFECT_SERVER_API_AUTH_STRING", "ada:my-password-1", "default"),
        ("prefect.sh", "PREFECT_SERVER_API_AUTH_STRING", GOOD, "not USER:PASSWORD"),
        ("prefect.sh", "PREFECT_SERVER_API_AUTH_STRING", f":{GOOD}", "not USER:PASSWORD"),
        ("prefect.sh", "PREFECT_UI_URL", "", "set PREFECT_UI_URL"),
        ("prefect.sh", "PREFECT_API_DATABASE_CONNECTION_URL", "postgresql://u@h/prefect", "postgresql+asyncpg://"),
        ("prefect.sh", "PYTHON", "/nowhere/python", "no /nowhere/python"),
    ],
)
def test_a_server_refuses_to_be_open_to_all(tmp_path, script, name, value, complaint):
    started = Started(script, tmp_path, {**SAFE[script], name: value})
    assert (started.code, started.arguments) == (78, []) and complaint in started.said
    assert "/" in value or len(value) < 5 or value not in started.said


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "127.0.0.2", "localhost.example.org", " 127.0.0.1", "127.0.0.1\n0.0.0.0"])
@pytest.mark.parametrize(("script", "name"), [("serve.sh", "MLFLOW_HOST"), ("prefect.sh", "PREFECT_SERVER_API_HOST")])
def test_whatever_is_not_this_machine_needs_a_password(tmp_path, script, name, host):
    started = Started(script, tmp_path, {name: host})
    assert (started.code, started.arguments) == (78, [])


@pytest.mark.parametrize(
    ("script", "argument"),
    [
        ("serve.sh", "--host"),
        ("serve.sh", "--host=0.0.0.0"),
        ("serve.sh", "-h0.0.0.0"),
        ("serve.sh", "--gunicorn-opts=-b 0.0.0.0"),
        ("serve.sh", "--disable-security-middleware"),
        ("serve.sh", "--app-name=basic-auth"),
        ("prefect.sh", "--host"),
        ("prefect.sh", "--host=0.0.0.0"),
    ],
)
def test_an_option_does_not_get_around_the_refusal(tmp_path, script, argument):
    started = Started(script, tmp_path, {}, (argument, "0.0.0.0"))
    assert (started.code, started.arguments) == (78, []) and "instead of" in started.said
    assert Started(script, tmp_path, {}, ("--workers", "2")).arguments[-2:] == ["--workers", "2"]


def test_the_environment_does_not_get_around_the_refusal(tmp_path):
    around = ("MLFLOW_GUNICORN_OPTS", "MLFLOW_UVICORN_OPTS", "MLFLOW_SERVER_DISABLE_SECURITY_MIDDLEWARE", "MLFLOW_SERVER_ALLOWED_HOSTS")
    assert not set(around) & set(Started("serve.sh", tmp_path, dict.fromkeys(around, "1")).environment)


def test_passwords_need_their_packages(tmp_path):
    started = Started("serve.sh", tmp_path, MLFLOW, has_auth=False)
    assert started.code == 78 and "[team]" in started.said


@pytest.mark.parametrize("value", HOSTILE)
def test_no_value_breaks_out_of_its_variable(tmp_path, value):
    (tmp_path / "mlflow").mkdir()
    names = ("MLFLOW_ALLOWED_HOSTS", "MLFLOW_PORT", "MLFLOW_BACKEND_STORE_URI", "MLFLOW_ARTIFACTS_DESTINATION")
    mlflow = Started("serve.sh", tmp_path / "mlflow", {**MLFLOW, **dict.fromkeys(names, value)})
    assert mlflow.arguments[3:5] == ["--host=0.0.0.0", f"--port={value}"] and mlflow.arguments[-1] == f"--allowed-hosts={value}"
    assert mlflow.environment["MLFLOW_BACKEND_STORE_URI"] == mlflow.environment["MLFLOW_ARTIFACTS_DESTINATION"] == value
    (tmp_path / "prefect").mkdir()
    auth = f"ada:{GOOD}{value}".replace("\n", "")
    settings = {"PREFECT_UI_URL": value, "PREFECT_SERVER_API_PORT": value, "PREFECT_SERVER_API_AUTH_STRING": auth}
    prefect = Started("prefect.sh", tmp_path / "prefect", {**PREFECT, **settings})
    assert prefect.arguments[4:] == ["--host=0.0.0.0", f"--port={value}"]
    assert (prefect.environment["PREFECT_UI_URL"], prefect.environment["PREFECT_SERVER_API_AUTH_STRING"]) == (value, auth)
    assert not mlflow.broken and not prefect.broken
