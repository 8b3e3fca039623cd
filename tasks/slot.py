"""One slot or several of Prefect's global limit on device stages: one server can serve several machines.

A thread owns the lease from the request to the release, so that a signal in the flow's thread cannot come between the two and leave a
slot taken. It renews the lease every twenty seconds.

When Prefect's server is away the stage goes on: the lock of its device, which needs no server, is still held. When the server is back and
has given the slot up, the thread takes another. Only if none is left, because somebody else took it, the stage is stopped, saves, and
queues again: the limit is never exceeded for longer than that takes.
"""

from __future__ import annotations

import contextvars
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from uuid import UUID

import httpx

from tasks import claims, provenance

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

log = logging.getLogger(__name__)

LEASE_S = 60.0  # the shortest that Prefect gives: after a power cut the slot is free after that
RENEW_S = 20.0
ASK_S = (1.0, 10.0)  # between two questions for a slot: at first, and at most
PATIENCE_S = 600.0  # with a server that is away, before there is a slot
SAY_AFTER_S = 10.0
RELEASE_S = 10.0


class SlotLost(ConnectionError):
    """The slot was given to somebody else while Prefect's server could not be reached. Worth another attempt, which waits for a slot."""


class _Away(ConnectionError):
    """Prefect's server did not answer, or said that it cannot."""


@contextmanager
def _reached() -> Iterator[None]:
    try:
        yield
    except httpx.TransportError as error:
        raise _Away(f"{type(error).__name__}: {error}") from error
    except httpx.HTTPStatusError as error:
        if error.response.status_code < 500:
            raise
        raise _Away(f"it answered {error.response.status_code}") from error


_held: contextvars.ContextVar[_Lease | None] = contextvars.ContextVar("slot", default=None)


def require() -> None:
    """Raise SlotLost if the slot that the caller works under is no longer its own. Without a slot there is nothing to lose."""
    lease = _held.get()
    if lease is not None and lease.lost:
        raise SlotLost(lease.lost)


@contextmanager
def global_slot(limit: str, slots: int, capacity: int, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Hold `slots` slots of the limit, all or none, waiting for them; makes the limit with `capacity` slots if the server has none.

    on_wait: called once if there is a wait, with what for.

    Raises:
        ValueError: the limit is smaller than `slots`.
        ConnectionError: Prefect's server was away for ten minutes.
    """
    lease = _Lease(limit, slots, capacity)
    context = contextvars.copy_context()  # Prefect's settings and run
    thread = threading.Thread(target=context.run, args=(lease.live,), name=f"slot-{limit}", daemon=True)
    thread.start()
    token = None
    try:
        _await(lease, on_wait)
        if lease.error is not None:
            raise lease.error
        token = _held.set(lease)
        yield
    finally:
        if token is not None:
            _held.reset(token)
        lease.over.set()
        thread.join(RELEASE_S)


def _await(lease: _Lease, on_wait: Callable[[str], None]) -> None:
    """Wait until the lease is settled, in short waits: signals are served between them."""
    is_said, begin = False, time.monotonic()
    while not lease.settled.wait(0.2):
        if not is_said and (lease.state or time.monotonic() - begin > SAY_AFTER_S):
            on_wait(lease.state or f"an answer of Prefect's server about the limit {lease.limit!r}")
            is_said = True


class _Lease:
    """The life of one lease, in a thread of its own."""

    def __init__(self, limit: str, slots: int, capacity: int) -> None:
        self.limit = limit
        self.slots = slots
        self.capacity = capacity
        self.settled = threading.Event()  # there is a slot, or an error
        self.over = threading.Event()  # it is not wanted any more
        self.error: Exception | None = None
        self.lost = ""
        self.state = ""  # what it waits for, in words

    def live(self) -> None:
        from prefect.client.orchestration import get_client

        try:
            with get_client(httpx_settings={}, sync_client=True) as client:  # its own: the flow's serves the flow's thread
                lease_id = self._take(client)
                while lease_id is not None:
                    with claims.noted("lease", str(lease_id)):
                        self.settled.set()
                        is_ours = self._renew(client, lease_id)
                        if is_ours:
                            self._release(client, lease_id)
                    lease_id = None if is_ours else self._replace(client)
        except Exception as error:  # it is the flow's thread that has to say so
            self.error = error
            self.lost = f"the slot of the limit {self.limit!r} could not be kept: {error}"
        finally:
            self.settled.set()

    def _take(self, client: SyncPrefectClient) -> UUID | None:
        """Ask until there is a slot; None if it is not wanted any more."""
        pause_s, end = ASK_S[0], time.monotonic() + PATIENCE_S
        while not self.over.is_set():
            try:
                lease_id = self._ask(client)
            except _Away as error:
                if time.monotonic() > end:
                    raise ConnectionError(f"Prefect's server was away for {PATIENCE_S:.0f} s: {error}") from error
                self.state = f"Prefect's server, which does not answer ({error})"
            else:
                if lease_id is not None:
                    return lease_id
                end = time.monotonic() + PATIENCE_S
            self.over.wait(pause_s * random.uniform(0.7, 1.3))
            pause_s = min(1.5 * pause_s, ASK_S[1])
        return None

    def _ask(self, client: SyncPrefectClient) -> UUID | None:
        """One request for the slots: the lease, or None if they are taken. Raises _Away."""
        with _reached():
            try:
                response = client.increment_concurrency_slots_with_lease([self.limit], self.slots, "concurrency", LEASE_S, _holder())
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.LOCKED:
                    self.state = _taken(client, self.limit, self.slots)
                    return None
                if error.response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
                    raise ValueError(_too_small(client, self.limit, self.slots)) from error
                raise
            answer = response.json()
            if answer["limits"]:
                return UUID(answer["lease_id"])
            client.release_concurrency_slots_with_lease(UUID(answer["lease_id"]))  # of nothing: the limit does not exist
            make_limit(client, self.limit, self.capacity)
        return self._ask(client)

    def _renew(self, client: SyncPrefectClient, lease_id: UUID) -> bool:
        """Keep the lease until it is not wanted any more; False if the server has given it up."""
        is_away = False
        while not self.over.wait(RENEW_S):
            try:
                with _reached():
                    client.renew_concurrency_lease(lease_id, LEASE_S)
            except httpx.HTTPStatusError as error:
                log.warning("Prefect's server does not renew the slot of the limit %r: %s", self.limit, error)
                return False
            except _Away as error:
                if not is_away:
                    log.warning("Prefect's server is away (%s); the stage goes on, its device is locked without the server", error)
                is_away = True
            else:
                is_away = False
        return True

    def _replace(self, client: SyncPrefectClient) -> UUID | None:
        """Another lease for the one that the server gave up while it was away; None if somebody else has the slot."""
        lease_id, end = None, time.monotonic() + RENEW_S
        while lease_id is None and not self.over.is_set() and time.monotonic() < end:
            try:
                lease_id = self._ask(client)
            except _Away:
                end = time.monotonic() + RENEW_S
            if lease_id is None:
                self.over.wait(ASK_S[0])
        if lease_id is None and not self.over.is_set():
            self.lost = (
                f"Prefect's server gave up this stage's slot of the limit {self.limit!r} while it was away, and others took it: "
                f"the stage waits for {self.state}. It saves and queues again"
            )
            log.warning("%s.", self.lost)
        return lease_id

    def _release(self, client: SyncPrefectClient, lease_id: UUID) -> None:
        try:
            client.release_concurrency_slots_with_lease(lease_id)
        except httpx.HTTPError as error:
            log.warning("The slot of the limit %r was not given back (%s); it is free after %.0f s", self.limit, error, LEASE_S)


def make_limit(client: SyncPrefectClient, name: str, slots: int) -> None:
    """Make the limit at its first use; one that an administrator has made stays as it is."""
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
    from prefect.exceptions import ObjectAlreadyExists

    try:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))
    except ObjectAlreadyExists:
        return  # somebody was faster
    log.warning(
        "Made the limit %r with %d slots, the devices of this machine; for several machines: prefect gcl update %s --limit TOTAL",
        name,
        slots,
        name,
    )


def _holder() -> Any:
    """The flow run as Prefect lists the holders of a slot."""
    from prefect.client.schemas.objects import ConcurrencyLeaseHolder

    run = provenance.flow_run()
    return None if run is None else ConcurrencyLeaseHolder(type="flow_run", id=run.id)


def _taken(client: SyncPrefectClient, name: str, slots: int) -> str:
    limit = client.read_global_concurrency_limit_by_name(name)
    return f"{slots} of the {limit.limit} slots of Prefect's limit {name!r}, of which {limit.active_slots} are taken"


def _too_small(client: SyncPrefectClient, name: str, slots: int) -> str:
    limit = client.read_global_concurrency_limit_by_name(name)
    return (
        f"the stage wants {slots} devices at once and Prefect's limit {name!r} has {limit.limit} slots: "
        f"raise it with `prefect gcl update {name} --limit N`, or give the stage fewer devices"
    )
