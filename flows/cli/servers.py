"""Servers on loopback that live as long as a command: each in a process group of its own, stopped with everything it started."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = "127.0.0.1"
STOP_S = 10.0
START_S = 180.0  # a cold Prefect database takes half a minute to make on a slow disk

_PR_SET_PDEATHSIG = 1
# Loaded here and not in the child: between fork and exec only the call itself is safe. A proxy has no business on loopback.
_libc = ctypes.CDLL(None, use_errno=True)
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerFailed(RuntimeError):
    """A server ended or did not answer; says where its log is."""


def free_port(preferred: int = 0) -> int:
    """The preferred port if nothing listens on it, else one that the kernel chooses."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                probe.bind((LOOPBACK, port))
                return probe.getsockname()[1]
    raise ServerFailed("No port of 127.0.0.1 is free.")


def answers(url: str) -> bool:
    """True if a GET is answered with 200 within two seconds."""
    try:
        with _direct.open(url, timeout=2) as response:
            return response.status == 200
    except (OSError, urllib.error.URLError):
        return False


def _end_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass
class Server:
    """One child that serves HTTP.

    url: what a person opens. health: what answers 200 as soon as it works. log: file that takes its output.
    """

    name: str
    command: Sequence[str]
    url: str
    health: str
    log: Path
    environment: Mapping[str, str]
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self) -> None:
        """Start it without waiting; a terminal's Ctrl-C does not reach it, the death of this process does."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait_until_it_answers(self, timeout_s: float = START_S, sleep: Callable[[float], None] = time.sleep) -> None:
        """Return when it answers.

        Raises:
            ServerFailed: it ended, or took longer than `timeout_s`.
        """
        end = time.monotonic() + timeout_s
        while not answers(self.health):
            if not self.alive:
                raise ServerFailed(f"{self.name} ended before it answered. {self.last_words()}")
            if time.monotonic() > end:
                raise ServerFailed(f"{self.name} did not answer in {timeout_s:.0f} s. {self.last_words()}")
            sleep(0.1)

    def last_words(self) -> str:
        """The end of its log, and where all of it is."""
        with suppress(OSError):
            lines = self.log.read_text(errors="replace").splitlines()[-5:]
            return f"Its log, {self.log}, ends with:\n" + "\n".join(f"    {line}" for line in lines)
        return f"Its log: {self.log}"

    def ask_to_stop(self) -> None:
        """SIGTERM to every process of its group; once, since a second one makes some servers drop their work."""
        self._signal(signal.SIGTERM)

    def wait_for_end(self, patience_s: float = STOP_S) -> None:
        """Wait until every process of its group has ended, and kill those that have not in time."""
        if self._process is None:
            return
        _wait_for_group(self._process, patience_s)
        if _group_exists(self._process.pid):
            self._signal(signal.SIGKILL)
            _wait_for_group(self._process, 1.0)
        self._process.wait()
        self._process = None

    def _signal(self, sign: int) -> None:
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)


def _group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _wait_for_group(leader: subprocess.Popen[bytes], timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        leader.poll()  # reaps it: a zombie would keep the group
        if not _group_exists(leader.pid):
            return
        time.sleep(0.05)


@contextmanager
def stopping(servers: Sequence[Server]) -> Iterator[None]:
    """Stop the servers at the end, however it comes; a second Ctrl-C meanwhile does not leave one behind."""
    try:
        yield
    finally:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            for server in servers:
                server.ask_to_stop()
            for server in servers:
                server.wait_for_end()
        finally:
            signal.signal(signal.SIGINT, previous)
