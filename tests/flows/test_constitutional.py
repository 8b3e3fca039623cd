"""Constitutional AI from end to end on the model made from scratch, and judges measured through an endpoint whose key stays secret."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows import recipes
from flows.recipes import Recipe
from tasks import process, registry

SECRET = "sk-never-to-be-seen-0123456789"


def stages(name: str) -> dict[str, registry.StageRecord]:
    return registry.find(name).stages


def artifact(home: Path, name: str, label: str) -> Path:
    digest = stages(name)[label].artifact.digest  # type: ignore[union-attr]
    return home / "store" / "objects" / digest[:2] / digest


@pytest.fixture
def own_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stages start from a process that has seen this test's environment."""
    monkeypatch.setenv("POSTTRAIN_THREADS", "1")
    process.close_zygote()
    yield
    process.close_zygote()


@pytest.mark.usefixtures("prefect_api", "own_process")
def test_the_flow_runs_in_the_order_of_its_paper(home: Path) -> None:
    flow, config = recipes.configure(recipes.load("constitutional-tiny"), ["methods=dpo"])
    flow(config)
    assert list(stages("constitutional")) == [
        *("base_model", "curate", "revise", "sft", "collect_preferences", "reward_model", "dpo"),
        *("evaluate_reward", "evaluate[base]", "evaluate[sft]", "evaluate[dpo]", "behaviour", "comparison"),
    ]
    rows = [json.loads(line) for line in (artifact(home, "constitutional", "revise") / "revisions.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and all(row["principle"] for row in rows)
    table = json.loads((artifact(home, "constitutional", "comparison") / "comparison.json").read_text())
    assert [row["policy"] for row in table["rows"]] == ["base", "sft", "dpo"]


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A server that prefers what is shown first, and the keys that it was sent."""
    keys: list[str] = []

    class Judge(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            keys.append(self.headers["Authorization"])
            usage = {"prompt_tokens": 100, "completion_tokens": 10}
            answer = {"choices": [{"message": {"content": '{"verdict": "A_better"}'}}], "usage": usage}
            content = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    http = HTTPServer(("127.0.0.1", 0), Judge)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", SECRET)
    yield f"http://127.0.0.1:{http.server_port}/v1", keys
    http.shutdown()
    http.server_close()


@pytest.mark.usefixtures("prefect_api")
def test_an_endpoint_is_measured_once_and_its_key_is_written_nowhere(
    home: Path, endpoint: tuple[str, list[str]], own_process: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url, keys = endpoint
    rows = [{"input": f"{i}?", "output_1": "yes", "output_2": "no", "label": 1 + i % 2} for i in range(3)]
    (tmp_path / "natural.json").write_text(json.dumps(rows))
    judge = {"backend": "endpoint", "url": url, "model": "wise-1", "api_key_variable": "JUDGE_KEY", "price_in": 1.0, "price_out": 2.0}
    measured = {"sets": [{"kind": "llmbar", "path": str(tmp_path / "natural.json")}], "judge": judge}
    flow, config = recipes.configure(Recipe(name="mine", flow="judge_accuracy", config={"measure": measured}))
    flow(config)
    assert keys == [f"Bearer {SECRET}"] * 6 and list(stages("judge_accuracy")) == ["judge_accuracy"]
    row = json.loads((artifact(home, "judge_accuracy", "judge_accuracy") / "judge_accuracy.json").read_text())["rows"][0]
    assert (row["judge"], row["ties"], row["position_first"]["mean"]) == ("ai:wise-1", 3, 1.0)
    (history,) = (home / "store" / "history").glob("judge_accuracy-*.jsonl")
    assert json.loads(history.read_text())["metrics"]["judge/cost"] == pytest.approx(6 * (100 * 1 + 10 * 2) / 1e6)

    flow, config = recipes.configure(Recipe(name="mine", flow="judge_accuracy", config={"seed": 1, "measure": measured}))
    flow(config)
    assert len(keys) == 6, "another run of the stage finds every answer paid for"

    output = capfd.readouterr()
    assert SECRET not in output.out + output.err
    files = [path for folder in (home, tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert (home / "judge" / "answers.sqlite") in files and len(files) > 10
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
