"""An endpoint that says what a test wants."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest


@pytest.fixture
def endpoint() -> Iterator[Callable[[Callable[[dict[str, Any]], str]], str]]:
    """Starts a server that answers each request body by the given function; returns its address."""
    servers: list[ThreadingHTTPServer] = []

    def start(behave: Callable[[dict[str, Any]], str]) -> str:
        class Requests(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                row = {"choices": [{"message": {"role": "assistant", "content": behave(body)}}], "usage": {}}
                text = json.dumps(row | {"usage": {"prompt_tokens": 10, "completion_tokens": 2}}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Requests))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/v1"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
