"""`posttrain run` and `posttrain ui` as processes: what is printed, what is left behind, what happens when they are stopped.

The tests of this module share one output folder and build on each other, in their order: starting servers takes seconds.
"""

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.timeout(900)  # most of it is waiting for servers, which a busy machine starts slowly
SLOWLY = ("--set", "train.pause_s=0.25", "--set", "train.steps=400")


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 300) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def processes_of(home: Path) -> list[str]:
    """Command lines of all processes that work in an output folder."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"POSTTRAIN_HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue  # it ended meanwhile
    return found


def steps_done(home: Path) -> int:
    return max((int(path.read_text() or 0) for path in (home / "store" / "checkpoints").glob("train-*/step")), default=0)


def run_in(err: str) -> str:
    """The name of the run that a command started."""
    found = re.search(r"^Run (\S+):", err, re.MULTILINE)
    assert found is not None, err
    return found.group(1)


def record(home: Path, name: str) -> dict:
    return json.loads((home / "runs" / f"{name}.json").read_text())


def test_a_killed_run_leaves_no_process_and_the_next_one_resumes_it(mini):
    process = mini.start("run", mini.recipe, "--set", "train.pause_s=0.25", "--set", "train.steps=12")
    wait_for(lambda: steps_done(mini.home) >= 2, "the second step")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_for(lambda: processes_of(mini.home) == [], f"the end of {processes_of(mini.home)}", 30)
    out, err = mini.posttrain("run", mini.recipe, "--set", "train.steps=12")
    assert re.search(r"= curate .*computed before", err) and re.search(r"\+ train .*resumed", err)
    assert "base [tiny]  0.500 [0.250,\u00a00.750]" in out
    assert f"{run_in(err)} finished" in out and "1 computed before, 1 resumed, 1 computed" in out
    assert "posttrain ui" in out and "mlflow ui --backend-store-uri sqlite:///" in out
    assert processes_of(mini.home) == []


def test_a_dry_run_says_what_would_be_computed_and_why(mini):
    out, _ = mini.posttrain("run", mini.recipe, "--dry-run", "--set", "train.steps=12", "--set", "train.method=minus")
    assert re.search(r"curate +hit", out)
    assert re.search(r'train +miss +config\.method: "plus" -> "minus"', out)
    assert re.search(r"compare +miss +input policy will be made by train", out)
    assert len(list((mini.home / "runs").glob("*.json"))) == 2


def test_explain_says_why_each_stage_was_computed(mini):
    out, _ = mini.posttrain("explain", "mini")
    assert re.search(r"curate +hit +.*same key as in mini-1", out)
    assert re.search(r"train +resumed +.*same key as in mini-1, which did not finish it", out)
    assert re.search(r"compare +computed +.*the first time", out)


def test_a_wrong_config_names_the_field_and_returns_2(mini):
    _, err = mini.posttrain("run", mini.recipe, "--set", "train.stepps=3", code=2)
    assert "train.stepps: there is no such field; did you mean 'steps'? (fields: steps, method, pause_s, trouble)" in err


# From here on with the two servers of `posttrain ui`


@pytest.fixture(scope="module")
def ui(mini) -> Iterator[subprocess.Popen[str]]:
    # What a team's servers are told in the same shell does not open these.
    team = {"PREFECT_SERVER_API_HOST": "0.0.0.0", "MLFLOW_HOST": "0.0.0.0", "MLFLOW_GUNICORN_OPTS": "--bind 0.0.0.0:0"}
    process = mini.start("ui", "--prefect-port", "0", "--mlflow-port", "0", environment=team)
    wait_for((mini.home / "ui.json").exists, "the addresses")
    yield process
    if process.poll() is None:
        process.kill()
        process.communicate()


def addresses(mini) -> dict[str, str]:
    return json.loads((mini.home / "ui.json").read_text())


def get(url: str) -> bytes:
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=20) as response:
        return response.read()


def post(url: str, body: dict) -> list | dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    return json.loads(get(request))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def scheduled(mini, ui) -> str:
    """A deployment that is due every ten seconds, made before the other tests need time: the scheduler works meanwhile."""
    api = f"{addresses(mini)['prefect']}/api"
    flow = post(f"{api}/flows/", {"name": "mini"})
    body = {
        "name": "every-ten-seconds",
        "flow_id": flow["id"],
        "entrypoint": "mini.mini",
        "schedules": [{"schedule": {"interval": 10}, "active": True}],
    }
    return post(f"{api}/deployments/", body)["id"]


def test_both_pages_are_served_on_loopback(mini, ui, scheduled):
    served = addresses(mini)
    assert b"Prefect" in get(served["prefect"]) and b"MLflow" in get(served["mlflow"])
    settings = json.loads(get(f"{served['prefect']}/ui-settings"))
    assert (settings["default_ui"], settings["api_url"]) == ("v1", f"{served['prefect']}/api")
    out, _ = mini.posttrain("ui")
    assert "running already" in out and served["prefect"] in out
    family = psutil.Process(ui.pid).children(recursive=True)
    listening = {one.laddr.ip for process in family for one in process.net_connections("inet") if one.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


def test_a_run_appears_live_in_the_served_prefect(mini, ui, scheduled):
    out, err = mini.posttrain("run", mini.recipe, "--set", "train.steps=12")
    assert "3 computed before" in out and addresses(mini)["prefect"] in out
    runs = post(f"{addresses(mini)['prefect']}/api/flow_runs/filter", {"flow_runs": {"name": {"any_": [run_in(err)]}}})
    assert [run["state"]["type"] for run in runs] == ["COMPLETED"]


def test_a_failed_stage_returns_1_and_says_where_its_log_is(mini, ui):
    _, err = mini.posttrain("run", mini.recipe, "--set", "train.trouble=config", "--set", "train.steps=5", code=1)
    assert f"{run_in(err)} failed: train: train.trouble is 'config': leave it out" in err
    assert "Traceback" not in err
    log = re.search(r"The log of train: (\S+)", err)
    assert log is not None and Path(log.group(1)).exists()
    assert record(mini.home, run_in(err))["status"] == "failed"


@pytest.mark.parametrize(("sign", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_run_saves_and_returns_the_code_of_its_signal(mini, ui, sign, code):
    before = steps_done(mini.home)
    process = mini.start("run", mini.recipe, *SLOWLY)
    wait_for(lambda: steps_done(mini.home) > before + 1, "two steps")
    os.killpg(process.pid, sign) if sign == signal.SIGINT else process.send_signal(sign)
    out, err = process.communicate(timeout=300)
    assert process.returncode == code, out + err
    name = run_in(err)
    assert f"{name} was stopped. The same command goes on from here" in err and "Traceback" not in err
    assert record(mini.home, name)["status"] == "stopped"
    assert record(mini.home, name)["stages"]["train"]["outcome"] == "failed"


def test_the_scheduler_creates_runs(mini, ui, scheduled):
    """Two known sets of library versions break it without a word: see the pins in pyproject.toml."""
    api = f"{addresses(mini)['prefect']}/api"
    found: list = []

    def some() -> bool:
        body = {"deployments": {"id": {"any_": [scheduled]}}, "flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}}
        found[:] = post(f"{api}/flow_runs/filter", body)
        return len(found) >= 3

    wait_for(some, "three scheduled runs", 120)


def test_ctrl_c_stops_both_servers(mini, ui):
    os.killpg(ui.pid, signal.SIGINT)
    out, err = ui.communicate(timeout=60)
    assert ui.returncode == 0, out + err
    assert re.search(r"Prefect +http://127\.0\.0\.1:\d+", out) and re.search(r"MLflow +http://127\.0\.0\.1:\d+", out)
    wait_for(lambda: processes_of(mini.home) == [], f"the end of {processes_of(mini.home)}", 30)
