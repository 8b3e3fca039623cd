"""A real HTTP server that plays an OpenAI-compatible endpoint, as good or as bad as a test wants it."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from data.judgements import Candidates
from data.records import Message, record_id
from models.configs.ai_judge import AIJudgeConfig
from models.judging import pace
from models.judging.answers import AnswerCache
from models.judging.endpoint import Endpoint
from models.judging.pairwise import PairwiseJudge

Reply = tuple[int, dict[str, str], bytes]
USAGE = {"prompt_tokens": 1500, "completion_tokens": 200}


def completion(text: Any, usage: dict[str, Any] | None = None) -> Reply:
    """A chat completion with one choice."""
    row: dict[str, Any] = {"choices": [{"message": {"role": "assistant", "content": text}}], "usage": USAGE if usage is None else usage}
    return 200, {}, json.dumps(row).encode()


def shown(body: dict[str, Any]) -> tuple[str, str]:
    """The two answers of a request, cut out at the mark that its instructions name."""
    system, user = (message["content"] for message in body["messages"])
    fence = re.search(r"hold the mark ([0-9a-f]{16})\b", system).group(1)  # type: ignore[union-attr]
    parts = re.split(rf"^=== {fence} (.+) ===$\n?", user, flags=re.MULTILINE)
    texts = dict(zip(parts[1::2], parts[2::2], strict=True))
    return texts["ANSWER A"].removesuffix("\n"), texts["ANSWER B"].removesuffix("\n")


def longer_wins(body: dict[str, Any]) -> Reply:
    first, second = shown(body)
    verdict = "tie" if len(first) == len(second) else "A_better" if len(first) > len(second) else "B_better"
    return completion(json.dumps({"verdict": verdict}))


class Server:
    """Answers by ``behave`` and remembers what it was asked."""

    def __init__(self) -> None:
        self.behave: Callable[[dict[str, Any]], Reply] = longer_wins
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self.peak = self._active = 0
        self._lock = threading.Lock()
        outer = self

        class Requests(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, content = outer._answer(self.path, body, dict(self.headers))
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                """Nothing."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                """A client that does not wait for its answer is part of the tests."""

        self.http = Quiet(("127.0.0.1", 0), Requests)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def _answer(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> Reply:
        assert path == "/v1/chat/completions"
        with self._lock:
            self.bodies.append(body)
            self.headers.append(headers)
            self.times.append(time.monotonic())
            self._active += 1
            self.peak = max(self.peak, self._active)
        try:
            return self.behave(body)
        finally:
            with self._lock:
                self._active -= 1


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(pace, "FIRST_WAIT_S", 0.01)
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


@pytest.fixture
def judge_of(server: Server, tmp_path: Path) -> Iterator[Callable[..., PairwiseJudge]]:
    """Makes judges that ask the server, with one cache for all of them."""
    caches: list[AnswerCache] = []

    def make(payer: str = "stage-0", **settings: Any) -> PairwiseJudge:
        config = AIJudgeConfig(**{"backend": "endpoint", "url": server.url, "model": "wise-1", **settings})
        caches.append(AnswerCache(tmp_path / "cache" / "answers.sqlite"))
        return PairwiseJudge(config, Endpoint(config, caches[-1], payer), "ai")

    yield make
    for cache in caches:
        cache.close()


@pytest.fixture(scope="session")
def row() -> Callable[..., Candidates]:
    """Candidates of one question."""

    def make(*texts: str, asked: str = "Why is the sky blue?") -> Candidates:
        prompt = (Message("user", asked),)
        return Candidates(record_id(prompt, texts), "toy", prompt, texts, ("sft@1",) * len(texts))

    return make


@pytest.fixture(scope="session")
def never() -> Callable[[], None]:
    """A tick that lets go on."""
    return lambda: None


@pytest.fixture(scope="session")
def say() -> Callable[..., Reply]:
    return completion


@pytest.fixture(scope="session")
def texts_of() -> Callable[[dict[str, Any]], tuple[str, str]]:
    return shown
