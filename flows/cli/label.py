"""`posttrain label`: the labelling page of a run, served until Ctrl-C."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flows.cli.session import known_prefect
from flows.cli.terminal import err, out

if TYPE_CHECKING:
    from fastapi import FastAPI

    from data.labelling.store import LabelStore

_NAMES_OF_LOOPBACK = ["127.0.0.1", "localhost", "[::1]"]


@dataclass(frozen=True)
class Serving:
    """Where the page is served, and to whom: without annotators to everybody on this machine."""

    host: str
    port: int
    annotators: Sequence[str]


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def label(name: str, serving: Serving) -> int:
    """Serve the labelling page of a run until Ctrl-C.

    Raises:
        ValueError: there is nothing to label, or the page would be open to others without a link of their own.
    """
    if not is_loopback(serving.host) and not serving.annotators:
        raise ValueError(
            f"--host {serving.host} can be reached by others: name those who label with --annotator, once for each, "
            "and they get a link of their own"
        )
    with known_prefect() as is_known:
        return _serve(name, serving, is_known)


def _serve(name: str, serving: Serving, is_known: bool) -> int:
    from flows.labelling.access import Access
    from flows.labelling.announcing import announce
    from flows.labelling.app import LabelPage, create_app
    from flows.labelling.tasks import find
    from flows.labelling.waking import Waker

    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    store = find(name)
    access = Access(store, links_only=bool(serving.annotators))
    tokens = {annotator: access.link_token(annotator) for annotator in dict.fromkeys(serving.annotators)}
    waker = Waker(store)
    hosts = [*_NAMES_OF_LOOPBACK, serving.host] if is_loopback(serving.host) else ["*"]

    def on_label() -> None:
        waker.look()
        if is_known:  # without a Prefect server nobody listens
            announce(store)

    with _bound(serving) as listening:
        waker.start()
        try:
            _say_where(store, tokens, serving.host, listening.getsockname()[1])
            _run(create_app(LabelPage(store, access, on_label), hosts), listening)
        except KeyboardInterrupt:
            err.print("\nStopped. The labels are kept; the same command goes on.", soft_wrap=True)
        finally:
            waker.stop()
    return 0


def _bound(serving: Serving) -> socket.socket:
    """A socket on the port, or on another one if it is taken. Raises ValueError where the address is not of this machine."""
    family = socket.AF_INET6 if ":" in serving.host else socket.AF_INET
    for port in (serving.port, 0):
        try:
            return socket.create_server((serving.host, port), family=family)
        except OSError as error:
            fault = error
    raise ValueError(f"--host {serving.host}: {fault.strerror or fault}")


def _run(app: FastAPI, listening: socket.socket) -> None:
    import uvicorn

    # No access log: the addresses of the links are secrets. No headers of a proxy: nobody says which one to believe.
    config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False, proxy_headers=False)
    uvicorn.Server(config).run(sockets=[listening])


def _say_where(store: LabelStore, tokens: Mapping[str, str], host: str, port: int) -> None:
    """The addresses, and how far the task is."""
    progress = store.progress()
    out.print(f"[bold]{store.name}[/bold]: {progress.labels} of {progress.wanted} labels, in {store.path}", soft_wrap=True)
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    width = max((len(name) for name in tokens), default=0)
    for name, token in tokens.items():
        out.print(f"  {name:<{width}}  {address}/enter/{token}", soft_wrap=True, markup=False)
    if not tokens:
        out.print(f"  {address}", soft_wrap=True)
    elif not is_loopback(host):
        out.print("The links are secrets, and travel unencrypted: outside of a trusted network put a proxy with TLS before the page.")
    out.print("Ctrl-C stops the page.")
