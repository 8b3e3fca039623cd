"""`posttrain serve` and its run forms in a real browser: a run from the form to its pages, and how runs end when serving ends.

The tests of this module share the servers and build on each other, in their order. With POSTTRAIN_FORM_SHOTS=FOLDER the first one leaves
pictures of the form and of the finished run there.
"""

import json
import os
import re
import signal
import sqlite3
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from tasks.credentials import require_prefect

pytestmark = pytest.mark.timeout(900)  # most of it is waiting for servers and processes, which a busy machine starts slowly
SHOTS = os.environ.get("POSTTRAIN_FORM_SHOTS")
PATIENCE_MS = 240_000

SMALLEST = """
flow: rlvr
description: The smallest comparison
config:
  base_model: {kind: scratch, dtype: float32, scratch: {hidden_size: 32, intermediate_size: 64, layers: 1, heads: 2, kv_heads: 1}}
  curate:
    sources: [{name: chain_sum, prompt: "{expression} =", task: {min_terms: 2, max_terms: 2, min_digits: 1, max_digits: 1}}]
    demonstrations: 24
    prompts: 8
    test_prompts: 8
  sft: {batch_size: 12, optim: {learning_rate: 3.0e-3}}
  grpo: {iterations: 1, prompts_per_iteration: 4, samples_per_prompt: 2, sampling: {max_tokens: 4}}
  evaluate: {greedy: false, sampling: {max_tokens: 4}}
"""


def wait_for(condition: Callable[[], Any], what: str, timeout_s: float = 240) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)
    return found


def call(url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
        return json.load(response)


class Refusing(BaseHTTPRequestHandler):
    """A server that answers everything with the status that its path begins with."""

    def do_POST(self) -> None:
        self.send_error(int(self.path.split("/")[1]))

    do_GET = do_POST

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/401/api", "lets in who has a password only: PREFECT_API_AUTH_STRING is not set: it is USER:PASSWORD"),
        ("/404", "answers with 404: PREFECT_API_URL ends with /api"),
        ("", "start it, or leave PREFECT_API_URL out"),
    ],
)
def test_a_server_that_does_not_let_us_in_is_said_with_what_to_do(path: str, message: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://user:secret@127.0.0.1:{server.server_port}{path}"
    if not path:
        server.shutdown()
        server.server_close()
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(ValueError, match=re.escape(message)) as refused:
        require_prefect()
    assert "secret" not in str(refused.value)
    server.shutdown()
    server.server_close()


def test_without_a_server_it_says_what_to_start(mini: Any) -> None:
    _, err = mini.posttrain("serve", code=2)
    assert "start `posttrain ui` in another terminal, give --ui, or name a server with PREFECT_API_URL" in err


class Site:
    """`posttrain serve --ui` on two recipes, and what it serves."""

    def __init__(self, mini: Any) -> None:
        self.mini = mini
        (mini.root / "smallest.yaml").write_text(SMALLEST)
        names = ["--name", str(mini.root / "smallest.yaml"), "--name", mini.recipe]
        self.log = mini.root / "serve.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                mini.command("serve", "--ui", *names), cwd=mini.cwd, env=mini.environment, stdout=log, stderr=log, start_new_session=True
            )
        wait_for(lambda: self.process.poll() is not None or "Ctrl-C ends" in self.log.read_text(), "the deployments")
        assert self.process.poll() is None, self.log.read_text()
        self.addresses = json.loads((mini.home / "ui.json").read_text())
        self.api = f"{self.addresses['prefect']}/api"
        self.deployments = {one["name"]: one["id"] for one in call(f"{self.api}/deployments/filter", {})}

    def form(self, name: str) -> str:
        return f"{self.addresses['prefect']}/deployments/deployment/{self.deployments[name]}/run"

    def start(self, name: str, config: dict) -> str:
        return call(f"{self.api}/deployments/{self.deployments[name]}/create_flow_run", {"parameters": {"config": config}})["id"]

    def state(self, run: str) -> str:
        return call(f"{self.api}/flow_runs/{run}")["state"]["type"]

    def process_of(self, run: str) -> int:
        """The process that runs a flow run; 0 as long as there is none."""
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and f"PREFECT__FLOW_RUN_ID={run}".encode() in (folder / "environ").read_bytes():
                    return int(folder.name)
            except OSError:
                continue  # it ended meanwhile
        return 0


@pytest.fixture(scope="module")
def site(mini: Any) -> Iterator[Site]:
    site = Site(mini)
    yield site
    if site.process.poll() is None:
        site.process.kill()
        site.process.wait()


def field(page: Any, name: str) -> Any:
    """The innermost part of a form with that title."""
    title = page.locator("span.schema-form-property__label", has_text=re.compile(rf"^{name}( \(Optional\))?$")).first
    return title.locator("xpath=ancestor::*[contains(concat(' ', @class, ' '), ' schema-form-property ')][1]")


def submit(page: Any) -> None:
    page.get_by_role("button", name="Submit").click()


def picture(page: Any, name: str, height: int) -> None:
    if SHOTS:
        page.set_viewport_size({"width": 1100, "height": height})
        page.wait_for_timeout(3000)
        page.screenshot(path=f"{SHOTS}/{name}.png")


def submitted(page: Any, site: Site) -> Any:
    """Runs on the server. The form takes what was typed over after a moment; submitted before, it is refused as it was."""
    for _ in range(10):
        page.wait_for_timeout(500)
        submit(page)
        with suppress(AssertionError):
            return wait_for(lambda: call(f"{site.api}/flow_runs/filter", {}), "the run", 15)
    raise AssertionError("the form was never accepted")


def test_a_run_from_the_form_to_its_pages(chromium: Any, site: Site) -> None:
    page = chromium.new_context(viewport={"width": 1280, "height": 1000}).new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(site.form("smallest"))
    seed, sft = field(page, "seed"), field(page, "sft")
    seed.wait_for()
    titles = [title.removesuffix(" (Optional)") for title in page.locator("span.schema-form-property__label").all_inner_texts()]
    assert titles.index("base_model") < titles.index("curate") < titles.index("seed") < titles.index("sft") < titles.index("evaluate")
    assert "epochs" not in titles  # of sft, which is folded
    assert "Default 0, at least 0." in seed.inner_text() and seed.locator("input").input_value() == "0"
    assert "scratch" in field(page, "kind").inner_text() and '"batch_size": 12' in sft.inner_text()
    picture(page, "run-form", 1900)
    sft.locator(".schema-form-property-menu button").first.click()
    page.get_by_text("Use form input").last.click()
    epochs = field(sft, "epochs")
    epochs.wait_for()
    assert "Passes over the demonstrations. Default 1, more than 0." in epochs.inner_text()
    assert field(sft, "batch_size").locator("input").input_value() == "12"  # the recipe's, not the default

    field(sft, "batch_size").locator("input").fill("0")
    submit(page)
    page.get_by_text("'config.sft.batch_size'. Failure reason: 0 is less than the minimum of 1").first.wait_for()
    assert call(f"{site.api}/flow_runs/count", {}) == 0
    field(sft, "batch_size").locator("input").fill("8")
    seed.locator("input").fill("5")
    runs = submitted(page, site)
    wait_for(lambda: site.state(runs[0]["id"]) in ("COMPLETED", "FAILED", "CRASHED"), "the end of the run", 600)
    assert site.state(runs[0]["id"]) == "COMPLETED", site.log.read_text()
    assert runs[0]["parameters"]["config"]["seed"] == 5 and runs[0]["parameters"]["config"]["sft"]["batch_size"] == 8
    record = json.loads((site.mini.home / "runs" / "smallest-1.json").read_text())  # named after the recipe
    assert record["status"] == "finished" and record["config"]["sft"]["batch_size"] == 8 and record["config"]["seed"] == 5

    page.goto(f"{site.addresses['prefect']}/runs/flow-run/{runs[0]['id']}")
    page.locator(".p-tab", has_text="Task Runs").click()
    for stage in ("curate", "sft", "grpo", "evaluate[grpo]", "comparison"):
        page.get_by_text(stage, exact=True).first.wait_for()
    page.locator(".p-tab", has_text="Artifacts").click()
    table = page.get_by_text("comparison", exact=True).first
    table.wait_for()
    picture(page, "run-page", 1000)
    report = page.get_by_role("link", name="The whole comparison as a page").get_attribute("href")
    mlflow = page.get_by_role("link", name="Metrics, parameters and models").get_attribute("href")
    assert mlflow.startswith(site.addresses["mlflow"]) and report == f"{mlflow}/artifacts/report.html"
    table.click()
    page.get_by_text("Accuracy").first.wait_for()
    for address, shown in ((mlflow, runs[0]["name"]), (report, "report.html")):
        page.goto(address)
        page.get_by_text(shown).first.wait_for()


def test_a_run_that_is_killed_has_crashed_and_the_next_one_runs(site: Site) -> None:
    run = site.start("mini", {"train": {"pause_s": 0.25, "steps": 400}})
    victim = wait_for(lambda: site.state(run) == "RUNNING" and site.process_of(run), "the process of the run")
    os.kill(victim, signal.SIGKILL)
    wait_for(lambda: site.state(run) == "CRASHED", "the state of the killed run")
    assert site.process.poll() is None
    again = site.start("mini", {"train": {"steps": 2}})
    wait_for(lambda: site.state(again) == "COMPLETED", "the next run")


def test_a_second_serve_says_that_there_is_one(site: Site) -> None:
    _, err = site.mini.posttrain("serve", code=1)
    assert "another `posttrain serve` is at work on" in err


def test_ctrl_c_ends_runs_in_order(site: Site) -> None:
    run = site.start("mini", {"train": {"pause_s": 0.25, "steps": 399}})
    wait_for(lambda: site.process_of(run) and steps_done(site.mini.home) >= 2, "two steps")
    os.killpg(site.process.pid, signal.SIGINT)  # as a terminal does
    assert site.process.wait(timeout=240) == 0, site.log.read_text()
    assert "Stopping: every run saves and ends" in site.log.read_text()
    with sqlite3.connect(site.mini.home / "prefect" / "prefect.db") as database:
        assert database.execute("SELECT state_type FROM flow_run WHERE id = ?", (run,)).fetchall() == [("CANCELLED",)]
    last = max((site.mini.home / "runs").glob("mini-*.json"), key=lambda path: path.stat().st_mtime)
    assert json.loads(last.read_text())["status"] == "stopped" and steps_done(site.mini.home) >= 2
    left = [folder for folder in Path("/proc").iterdir() if folder.name.isdigit() and works_in(folder, site.mini.home)]
    assert left == []


def steps_done(home: Path) -> int:
    return max((int(path.read_text() or 0) for path in (home / "store" / "checkpoints").glob("train-*/step")), default=0)


def works_in(folder: Path, home: Path) -> bool:
    try:
        return f"POSTTRAIN_HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
