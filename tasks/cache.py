"""Prefect's cache, made to tell the truth: a record counts only while its artifact is whole, and one process at a time computes a key."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from prefect.filesystems import LocalFileSystem

from tasks.locks import FlockLocks
from tasks.store import Artifact, ArtifactInvalid, Store


class NoRecord(LookupError):
    """A stage key has no usable record. The message says why."""


def _read_json(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NoRecord(f"its {what} is missing") from error
    except (OSError, ValueError) as error:
        raise NoRecord(f"its {what} cannot be read: {error}") from error


def _result_path(store: Store, metadata: dict[str, Any]) -> Path:
    # By name only: the record holds a whole path, which is wrong after the output folder was moved.
    return store.root / "records" / "results" / Path(str(metadata.get("storage_key"))).name


def recorded(store: Store, key: str) -> Artifact:
    """The artifact that was recorded for a key, verified.

    Raises:
        NoRecord: there is none, it cannot be read, or the artifact is missing or damaged.
    """
    path = store.root / "records" / "keys" / key
    if not path.exists():
        raise NoRecord("it was never computed")
    result = _read_json(_result_path(store, _read_json(path, "cache record")), "recorded result")
    try:
        artifact = Artifact.model_validate(result["data"])
        store.verify(artifact)
    except ArtifactInvalid as error:
        raise NoRecord(str(error)) from error
    except (ValueError, TypeError, KeyError) as error:
        raise NoRecord(f"its recorded result is no artifact: {error}") from error
    return artifact


class StageKeyStorage(LocalFileSystem):
    """Where Prefect keeps cache keys. Holding the key's lock, it asks `read_path` for the record; an exception means there is none."""

    _block_type_name = "Stage key storage"
    _block_type_slug = "stage-key-storage"  # without one of its own the class would take over "local-file-system"
    store_root: str

    def read_path(self, path: str, _sync: bool = True) -> bytes:  # type: ignore[override]
        """The record of a key, if its artifact is whole."""
        store = Store(Path(self.store_root))
        recorded(store, path)
        metadata = json.loads((store.root / "records" / "keys" / path).read_text(encoding="utf-8"))
        return json.dumps({**metadata, "storage_key": str(_result_path(store, metadata))}).encode()

    async def aread_path(self, path: str) -> bytes:
        """As `read_path`."""
        return await asyncio.to_thread(self.read_path, path)


@dataclass
class StagePolicy(CachePolicy):
    """The key that the stage computed for the call that is going on."""

    current_key: Callable[[], str] | None = None

    def compute_key(self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any) -> str:
        assert self.current_key is not None
        return self.current_key()


def stage_policy(store: Store, current_key: Callable[[], str], on_wait: Callable[[str], None]) -> StagePolicy:
    """The policy of the stages of one store."""
    return StagePolicy(
        key_storage=StageKeyStorage(basepath=str(store.root / "records" / "keys"), store_root=str(store.root)),
        isolation_level="SERIALIZABLE",
        lock_manager=FlockLocks(store.root / "locks", on_wait),
        current_key=current_key,
    )
