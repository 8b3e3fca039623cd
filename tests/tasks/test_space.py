"""What a stage says of the disk that it needs, before it starts."""

from pathlib import Path

import pytest

from models.configs.checkpointing import CheckpointConfig
from models.configs.sft import SFTConfig
from tasks.sft import sft
from tasks.stage import SPARE_BYTES, StageContext, _Call
from tasks.store import Artifact, Store


def stored(store: Store, kind: str, files: dict[str, int]) -> Artifact:
    staged = store.new_staging()
    for name, size in files.items():
        path = staged / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * size)
    return store.put(staged / "out", kind)


@pytest.mark.parametrize(("snapshots", "more"), [(0, 0), (3, 3 * 1000)])
def test_snapshots_need_the_room_of_a_policy_each(snapshots: int, more: int, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(home / "store")
    base = stored(store, "policy", {"config.json": 2, "model.safetensors": 1000, "snapshots/000002/model.safetensors": 1000})
    data = stored(store, "dataset", {"demonstrations.parquet": 50})
    config = SFTConfig(checkpoint=CheckpointConfig(snapshots=snapshots))
    asked: list[int] = []
    monkeypatch.setattr(Store, "require_space", lambda self, needed, what: asked.append(needed))
    call = _Call(sft, "sft", store, {"config": config, "data": data, "base": base, "seed": 0})
    StageContext(call)._require_space()
    assert asked == [2 * (base.size_bytes + data.size_bytes) + more + SPARE_BYTES], "not of the snapshots that the parent has"
