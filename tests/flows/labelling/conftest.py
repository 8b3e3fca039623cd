"""A labelling task, and its page: asked through a client in this process, or served to a browser."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from data.labelling.records import Item, Settings
from data.labelling.store import LabelStore
from data.records import Message
from flows.labelling.access import Access
from flows.labelling.app import LabelPage, create_app

HOSTS = ["127.0.0.1", "localhost"]

# Texts that would break a page that took them for anything but text.
HOSTILE = (
    "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">{{ 7 * 7 }} &amp; </textarea></form>",
    "x" * 3000,
    "before \u202eedisni\u202c after \u2066\u2067 zero\u200bwidth \ufeff\x00\x1b[31m",
    "Z\u0336\u0321\u0322\u031b\u0327a\u0336l\u0336g\u0337o " * 20
    + "\n\n\U0001f469\u200d\U0001f467 \u05e2\u05d1\u05e8\u05d9\u05ea \u0645\u0631",
)


def asked(number: int, completions: tuple[str, ...]) -> Item:
    return Item(f"item-{number}", (Message("user", f"Question {number}?"),), completions)


@pytest.fixture
def hostile() -> tuple[str, ...]:
    return HOSTILE


@pytest.fixture
def make_task(tmp_path: Path) -> Any:
    """make_task(items, k=..., texts=..., name=..., **settings): completions are called "answer 0", "answer 1" and so on."""

    def make(items: int = 20, *, k: int = 2, texts: tuple[str, ...] = (), name: str = "task", **settings: Any) -> LabelStore:
        store = LabelStore(tmp_path / f"{name}.db")
        texts = texts or tuple(f"answer {n}" for n in range(k))
        store.register([asked(n, texts) for n in range(items)], Settings(**settings))
        return store

    return make


class Served:
    """A page on a port of its own, in a thread of this process."""

    def __init__(self, store: LabelStore, links_only: bool = False) -> None:
        self.store = store
        self.access = Access(store, links_only=links_only)
        app = create_app(LabelPage(store, self.access, lambda: None), HOSTS)
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off"))
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        end = time.monotonic() + 60
        while not self._server.started:
            assert time.monotonic() < end, "the page did not start"
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def link(self, name: str) -> str:
        """The address that signs an annotator in."""
        return f"{self.url}/enter/{self.access.link_token(name)}"

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)


@pytest.fixture
def served(make_task: Any) -> Iterator[Any]:
    """served(items, k=..., **settings) -> a page."""
    pages: list[Served] = []

    def serve(items: int = 20, **options: Any) -> Served:
        pages.append(Served(make_task(items, name=f"task-{len(pages)}", **options)))
        return pages[-1]

    yield serve
    for page in pages:
        page.stop()


SIZES = {"laptop": (1366, 768), "phone": (390, 844)}


@pytest.fixture(params=SIZES)
def window(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Any]:
    """A tab at the width of a laptop and of a telephone. What the page says on its console fails the test."""
    width, height = SIZES[request.param]
    context = chromium.new_context(viewport={"width": width, "height": height}, has_touch=request.param == "phone")
    context.set_default_timeout(20_000)
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda sent: said.append(f"asks {sent.url}") if not sent.url.startswith("http://127.0.0.1:") else None)
    yield page
    context.close()
    assert said == []
