"""Devices: one stage on each, and with GPUs Prefect's limit beside the lock."""

import threading
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

from tasks.device import GPU_LIMIT, device_slot, visible_gpus
from tasks.locks import is_free
from tasks.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def nobody_waits() -> None:
    raise AssertionError("a device was free")


@pytest.mark.parametrize(("value", "gpus"), [("", []), ("-1", []), ("0", ["0"]), ("3, GPU-ab12", ["3", "GPU-ab12"])])
def test_visible_gpus_are_what_cuda_would_see(value: str, gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert visible_gpus() == gpus


def test_one_stage_at_a_time_on_the_cpu(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    waited = threading.Event()
    entered: list[dict[str, str]] = []

    def second() -> None:
        with device_slot(store, waited.set) as environment:
            entered.append(environment)

    with device_slot(store, nobody_waits) as environment:
        assert environment == {}
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(5)
        assert not entered
    thread.join(5)
    assert entered == [{}]


@pytest.mark.usefixtures("prefect_api")
def test_stages_on_two_gpus_see_one_each(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    with device_slot(store, nobody_waits) as one, device_slot(store, nobody_waits) as two:
        assert (one, two) == ({"CUDA_VISIBLE_DEVICES": "2"}, {"CUDA_VISIBLE_DEVICES": "5"})
        with get_client(sync_client=True) as client:
            limit = client.read_global_concurrency_limit_by_name(GPU_LIMIT)
        assert (limit.limit, limit.active_slots) == (2, 2)
    assert is_free(store.root / "locks" / "device-gpu-2.lock")
    with device_slot(store, nobody_waits) as again:
        assert again == {"CUDA_VISIBLE_DEVICES": "2"}, "the limit is there and stays as it is"
