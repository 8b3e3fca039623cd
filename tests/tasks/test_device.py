"""Devices: one stage on each, all or none for those that want several, and with GPUs Prefect's limit beside the lock."""

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

from tasks import slot
from tasks.device import GPU_LIMIT, device_lock, device_slot, limit_name, visible_gpus
from tasks.locks import is_free
from tasks.slot import SlotLost, global_slot
from tasks.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def nobody_waits(what: str) -> None:
    raise AssertionError(f"a device was free, and not {what}")


def in_thread(function: Callable[[], Any]) -> threading.Thread:
    import contextvars

    thread = threading.Thread(target=contextvars.copy_context().run, args=(function,))
    thread.start()
    return thread


@pytest.mark.parametrize(("value", "gpus"), [("", []), ("-1", []), ("0", ["0"]), ("3, GPU-ab12", ["3", "GPU-ab12"])])
def test_visible_gpus_are_what_cuda_would_see(value: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == gpus
    assert limit_name() == ("gpu" if gpus else "")
    monkeypatch.setenv("POSTTRAIN_LIMIT", "big")
    assert limit_name() == "big"


def test_one_stage_at_a_time_on_the_cpu(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    waited: list[str] = []
    entered: list[dict[str, str]] = []

    def second() -> None:
        with device_slot(store, waited.append, count=2) as environment:
            entered.append(environment)

    with device_slot(store, nobody_waits) as environment:
        assert environment == {}
        thread = in_thread(second)
        wait_for(lambda: waited)
        assert not entered
    thread.join(5)
    assert entered == [{}]
    assert len(waited) == 1 and "cpu: process" in waited[0] and "UTC" in waited[0], "it says for whom"


def wait_for(condition: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    end = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)
    return found


# Several devices


@pytest.fixture
def no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two devices of this machine, without a server."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("POSTTRAIN_LIMIT", "")


@pytest.mark.usefixtures("no_limit")
def test_two_stages_that_want_both_devices_take_turns(store: Store) -> None:
    inside, most, done = 0, 0, []
    lock = threading.Lock()

    def wants_both() -> None:
        nonlocal inside, most
        for _ in range(3):
            with device_slot(store, lambda what: None, count=2) as environment:
                with lock:
                    inside, most = inside + 1, max(most, inside + 1)
                time.sleep(0.05)
                with lock:
                    inside -= 1
            done.append(environment["CUDA_VISIBLE_DEVICES"])

    threads = [in_thread(wants_both) for _ in range(2)]
    for thread in threads:
        thread.join(20)
    assert (done, most) == (["0,1"] * 6, 1)


@pytest.mark.usefixtures("no_limit")
def test_one_that_wants_all_is_not_overtaken(store: Store) -> None:
    order: list[str] = []

    def take(name: str, count: int) -> threading.Thread:
        waited = threading.Event()

        def body() -> None:
            with device_slot(store, lambda what: waited.set(), count=count):
                order.append(name)

        thread = in_thread(body)
        assert waited.wait(10)
        return thread

    with device_slot(store, nobody_waits):
        threads = [take("both", 2), take("one", 1)]
        assert order == [], "the second device is kept for the one that was first"
    for thread in threads:
        thread.join(10)
    assert order == ["both", "one"]


@pytest.mark.usefixtures("no_limit")
def test_more_devices_than_there_are_is_an_error_at_once(store: Store) -> None:
    with (
        pytest.raises(ValueError, match=r"wants 3 devices and this process may use 2: CUDA_VISIBLE_DEVICES is 0,1"),
        device_slot(store, nobody_waits, count=3),
    ):
        pass


# Prefect's limit


@pytest.fixture
def client(prefect_api: None) -> Iterator[SyncPrefectClient]:
    with get_client(sync_client=True) as client:
        yield client


def limit_of(client: SyncPrefectClient, slots: int) -> str:
    """A limit of a test's own."""
    name = f"test-{time.monotonic_ns()}"
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=slots))
    return name


def active(client: SyncPrefectClient, name: str) -> int:
    return client.read_global_concurrency_limit_by_name(name).active_slots


def test_stages_on_two_gpus_see_one_each(store: Store, client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with device_slot(store, nobody_waits) as one, device_slot(store, nobody_waits) as two:
        assert (one, two) == ({"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"})
        limit = client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        assert (limit.limit, limit.active_slots) == (2, 2)
    assert is_free(device_lock(store.root / "locks", "gpu-2"))
    with device_slot(store, nobody_waits, count=2) as again:
        assert again == {"CUDA_VISIBLE_DEVICES": "2,5"}, "the limit is there and stays as it is"
        assert active(client, GPU_LIMIT) == 2
    assert active(client, GPU_LIMIT) == 0


def test_who_waits_for_a_slot_of_another_machine_says_so_and_gets_it(client: SyncPrefectClient) -> None:
    name, waited, entered = limit_of(client, 1), [], threading.Event()

    def second() -> None:
        with global_slot(name, 1, 1, waited.append):
            entered.set()

    with global_slot(name, 1, 1, nobody_waits):
        thread = in_thread(second)
        wait_for(lambda: waited)
        assert waited == [f"1 of the 1 slots of Prefect's limit {name!r}, of which 1 are taken"] and not entered.is_set()
    thread.join(20)
    assert entered.is_set() and active(client, name) == 0


def test_whoever_is_stopped_while_waiting_takes_nothing(client: SyncPrefectClient) -> None:
    name = limit_of(client, 1)

    def interrupted(what: str) -> None:
        raise KeyboardInterrupt

    with global_slot(name, 1, 1, nobody_waits), pytest.raises(KeyboardInterrupt), global_slot(name, 1, 1, interrupted):
        pass
    assert active(client, name) == 0


def test_a_limit_that_is_too_small_is_an_error_that_says_how_to_raise_it(client: SyncPrefectClient) -> None:
    name = limit_of(client, 1)
    with pytest.raises(ValueError, match=f"wants 2 devices .* has 1 slots: raise it with `prefect gcl update {name} --limit N`"):  # noqa: SIM117
        with global_slot(name, 2, 2, nobody_waits):
            pass


def lease_ids(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The leases that are taken from now on."""
    taken: list[Any] = []
    ask = SyncPrefectClient.increment_concurrency_slots_with_lease

    def noting(self: SyncPrefectClient, *arguments: Any, **options: Any) -> httpx.Response:
        response = ask(self, *arguments, **options)
        taken.append(response.json()["lease_id"])
        return response

    monkeypatch.setattr(SyncPrefectClient, "increment_concurrency_slots_with_lease", noting)
    return taken


def test_a_slot_that_the_server_gave_up_is_taken_again(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "RENEW_S", 0.2)
    name, taken = limit_of(client, 1), lease_ids(monkeypatch)
    with global_slot(name, 1, 1, nobody_waits):
        client.release_concurrency_slots_with_lease(taken[0])  # as the server does when a lease is over
        wait_for(lambda: len(taken) == 2 and active(client, name) == 1)
        slot.require()
    assert active(client, name) == 0


def test_a_stage_whose_slot_is_another_s_now_stops_and_may_be_tried_again(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slot, "RENEW_S", 0.2)
    name, taken = limit_of(client, 1), lease_ids(monkeypatch)
    with pytest.raises(SlotLost, match=r"gave up this stage's slot .* and others took it"), global_slot(name, 1, 1, nobody_waits):
        client.release_concurrency_slots_with_lease(taken[0])
        other = client.increment_concurrency_slots_with_lease([name], 1, "concurrency", 60)  # noqa: F841
        for _ in range(600):
            slot.require()
            time.sleep(0.05)
    assert active(client, name) == 1, "the other's"


def test_a_stage_goes_on_while_the_server_is_away(client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "RENEW_S", 0.05)
    name, tries = limit_of(client, 1), []

    def away(self: SyncPrefectClient, *arguments: Any) -> None:
        tries.append(arguments)
        raise httpx.ConnectError("connection refused")

    with global_slot(name, 1, 1, nobody_waits):
        monkeypatch.setattr(SyncPrefectClient, "renew_concurrency_lease", away)
        wait_for(lambda: len(tries) > 3)
        slot.require()
    assert active(client, name) == 0
