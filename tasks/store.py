"""The artifact store: folders of files, named by the digest of their manifest. What a stage returns is a reference to one of them.

    objects/ab/<digest>/             the files, read-only
    manifests/<digest>.json          {path: {sha256, size}}; its own sha256 is the digest, so that it cannot lie
    manifests/<digest>.artifact.json the reference (kind, meta) it was last stored under
    staging/                         what is being written; a lock beside each folder says whether its writer lives
    records/{keys,results}           Prefect's cache records: stage key -> reference
    checkpoints/<stage key>/         of a stage that is running or was killed
    history/<stage key>.jsonl        the metric journal of a finished stage
    costs/<stage key>.json           what computing it took
    keydocs/<stage key>.json         every part of a stage key, to explain misses
    logs/<stage key>.log             what the stage's process wrote

An artifact is written into staging, fsynced, hashed, and renamed into place: a reader sees all of it or nothing. Reads verify:
every file's digest at the first use in a process, size and modification time at each use after that.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from data.files import fsync, sha256_of
from models.run import write_atomic
from tasks.locks import file_lock, is_free, try_lock

FOLDERS = (
    *("objects", "manifests", "staging", "records/keys", "records/results"),
    *("checkpoints", "history", "costs", "keydocs", "locks", "logs"),
)
GIB = 2**30

Level = Literal["stat", "full"]
Manifest = dict[str, dict[str, Any]]
Problems = list[str]  # names of their own, because `list` is a method of Store

# What every file of an artifact looked like when its bytes were hashed in this process: folder -> path -> (size, mtime, inode).
_seen: dict[Path, dict[str, tuple[int, int, int]]] = {}


class ArtifactInvalid(RuntimeError):
    """An artifact is not there, or is not what its digest says."""


class Artifact(BaseModel):
    """A reference to stored files; the only thing that stages hand to each other. Equal when kind and digest are equal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="What the files are: policy, reward_model, dataset, preferences, report")
    digest: str = Field(description="sha256 of the manifest of file digests, in hex")
    size_bytes: int = Field(description="Size of all files together, in bytes")
    n_files: int = Field(description="Number of files")
    meta: dict[str, JsonValue] = Field(default_factory=dict, description="What the stage says about them; not part of the identity")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and (self.kind, self.digest) == (other.kind, other.digest)

    def __hash__(self) -> int:
        return hash((self.kind, self.digest))


Artifacts = list[Artifact]


def _sync_and_hash(path: Path) -> str:
    fsync(path)
    return sha256_of(path)


def _map_threads(function: Any, items: Iterable[Any]) -> list[Any]:
    items = list(items)
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(4, len(items))) as pool:
        return list(pool.map(function, items))


def _files(folder: Path) -> dict[str, os.stat_result]:
    """Every regular file below a folder, by relative path in sorted order. A link or a socket has no digest and is refused."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        if stat.S_ISREG(status.st_mode):
            found[path.relative_to(folder).as_posix()] = status
        elif not stat.S_ISDIR(status.st_mode):
            raise ValueError(f"{path} is neither a file nor a folder: an artifact holds plain files only; copy what it points to")
    return found


def _canonical(manifest: Manifest) -> str:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":"))


def _look(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ino


def _set_writable(folder: Path, writable: bool) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod((0o755 if writable else 0o555) if path.is_dir() else (0o644 if writable else 0o444))


def _remove_tree(folder: Path) -> None:
    if folder.exists():
        _set_writable(folder, True)
        shutil.rmtree(folder)


class Store:
    """The store under one root folder. Cheap to make; any number of processes may use one root at a time."""

    def __init__(self, root: Path) -> None:
        self.root = Path(root).resolve()
        self._staging_locks: dict[Path, int] = {}
        for name in FOLDERS:
            (self.root / name).mkdir(parents=True, exist_ok=True)

    def folder(self, digest: str) -> Path:
        """Where the files of a digest lie, verified or not."""
        return self.root / "objects" / digest[:2] / digest

    def path(self, artifact: Artifact) -> Path:
        """The folder of an artifact, after verification.

        Raises:
            ArtifactInvalid: it is missing or its bytes are not the ones that were stored.
        """
        self.verify(artifact)
        return self.folder(artifact.digest)

    # Writing

    def new_staging(self) -> Path:
        """An empty folder on the store's disk, to be filled and then given to `put` or `discard`."""
        folder = self.root / "staging" / uuid.uuid4().hex
        descriptor = try_lock(folder.with_suffix(".lock"))
        assert descriptor is not None, "a new name cannot be locked"
        self._staging_locks[folder] = descriptor
        folder.mkdir()
        return folder

    def discard(self, staging: Path) -> None:
        """Remove a staging folder that is not needed any more; nothing happens if it is gone."""
        _remove_tree(staging)
        descriptor = self._staging_locks.pop(staging, None)
        if descriptor is not None:
            staging.with_suffix(".lock").unlink(missing_ok=True)
            os.close(descriptor)

    def clean_staging(self) -> int:
        """Remove what killed writers left in staging; returns how many folders."""
        removed = 0
        for folder in (path for path in (self.root / "staging").iterdir() if path.is_dir()):
            lock = folder.with_suffix(".lock")
            if is_free(lock):
                _remove_tree(folder)
                lock.unlink(missing_ok=True)
                removed += 1
        return removed

    def put(self, staged: Path, kind: str, meta: dict[str, Any] | None = None) -> Artifact:
        """Move a folder into the store (it is gone from where it was) and return its reference.

        Raises:
            ValueError: the folder holds no file, or something that is not a file.
        """
        statuses = _files(staged)
        if not statuses:
            raise ValueError(f"the stage wrote no file, so there is no {kind} to store")
        hashes = _map_threads(_sync_and_hash, [staged / name for name in statuses])
        sizes = [status.st_size for status in statuses.values()]
        manifest = {name: {"sha256": sha256, "size": size} for name, sha256, size in zip(statuses, hashes, sizes, strict=True)}
        text = _canonical(manifest)
        digest = hashlib.sha256(text.encode()).hexdigest()
        artifact = Artifact(kind=kind, digest=digest, size_bytes=sum(sizes), n_files=len(manifest), meta=meta or {})
        with file_lock(self.root / "locks" / f"put-{digest}.lock", keep=False):
            self._place(staged, digest, manifest)
            write_atomic(self._manifest_path(digest), text)
            write_atomic(self._manifest_path(digest).with_suffix(".artifact.json"), artifact.model_dump_json())
        return artifact

    def _place(self, staged: Path, digest: str, manifest: Manifest) -> None:
        target = self.folder(digest)
        target.parent.mkdir(exist_ok=True)
        if target.exists() and not self._compare(target, manifest, "full"):
            _remove_tree(staged)
            return
        if target.exists():  # a damaged copy: renamed away first, so that no reader meets a mixture
            damaged = self.root / "staging" / f"damaged-{uuid.uuid4().hex}"
            target.chmod(0o755)  # whoever is not root cannot rename a read-only folder
            os.replace(target, damaged)
            _remove_tree(damaged)
        os.replace(staged, target)
        fsync(target.parent)
        _set_writable(target, False)
        _seen[target] = {name: _look(status) for name, status in _files(target).items()}

    # Reading

    def _manifest_path(self, digest: str) -> Path:
        return self.root / "manifests" / f"{digest}.json"

    def _manifest(self, digest: str) -> Manifest:
        text = self._manifest_path(digest).read_text(encoding="utf-8")
        if hashlib.sha256(text.encode()).hexdigest() != digest:
            raise ValueError("the manifest was changed")
        return json.loads(text)

    def _compare(self, folder: Path, manifest: Manifest, level: Level) -> Problems:
        """Compare a folder with its manifest: the bytes at level "full", or where a file does not look as when it was last hashed."""
        try:
            statuses = _files(folder)
        except (OSError, ValueError) as error:
            return [str(error)]
        problems = [f"{name} is missing" for name in manifest.keys() - statuses.keys()]
        problems += [f"{name} was added" for name in statuses.keys() - manifest.keys()]
        problems += [
            f"{name} has {status.st_size} bytes instead of {manifest[name]['size']}"
            for name, status in statuses.items()
            if name in manifest and status.st_size != manifest[name]["size"]
        ]
        if problems:
            return sorted(problems)
        known = _seen.get(folder, {})
        unread = [name for name, status in statuses.items() if level == "full" or known.get(name) != _look(status)]
        hashes = _map_threads(sha256_of, [folder / name for name in unread])
        problems = [f"{name} has other bytes" for name, digest in zip(unread, hashes, strict=True) if digest != manifest[name]["sha256"]]
        if not problems:
            _seen[folder] = {name: _look(status) for name, status in statuses.items()}
        return problems

    def problems(self, artifact: Artifact, level: Level = "stat") -> Problems:
        """What is wrong with an artifact, in words; empty if it is whole.

        level "stat" hashes a file at its first use in this process and when its size, time or inode moved since; "full" hashes it always.
        """
        folder = self.folder(artifact.digest)
        if not folder.is_dir():
            return ["it is not in the store"]
        try:
            manifest = self._manifest(artifact.digest)
        except (OSError, ValueError) as error:
            return [f"its manifest cannot be used: {error}"]
        return self._compare(folder, manifest, level)

    def verify(self, artifact: Artifact, level: Level = "stat") -> None:
        """Raise ArtifactInvalid if an artifact is missing or damaged (see `problems` for the levels)."""
        problems = self.problems(artifact, level)
        if problems:
            _seen.pop(self.folder(artifact.digest), None)
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ArtifactInvalid(f"{artifact.kind} {artifact.digest[:12]}: {', '.join(problems[:3])}{more}; run again to make it anew")

    def list(self) -> Artifacts:
        """Every artifact whose reference can be read, by digest."""
        found = []
        for path in sorted((self.root / "manifests").glob("*.artifact.json")):
            try:
                found.append(Artifact.model_validate_json(path.read_text(encoding="utf-8")))
            except (OSError, ValueError):
                continue  # a torn reference; `verify` of whoever holds its digest still works from the manifest
        return found

    def find(self, prefix: str) -> Artifact:
        """The artifact whose digest starts with `prefix`.

        Raises:
            ValueError: none or several do.
        """
        found = [artifact for artifact in self.list() if artifact.digest.startswith(prefix)]
        if len(found) != 1:
            names = ", ".join(artifact.digest[:12] for artifact in found[:5]) or "see `posttrain artifacts list`"
            raise ValueError(f"{len(found)} artifacts start with {prefix!r}: {names}")
        return found[0]

    def remove(self, digest: str) -> None:
        """Delete an artifact. Whoever still has a reference will find it missing and make it anew."""
        with file_lock(self.root / "locks" / f"put-{digest}.lock", keep=False):
            folder = self.folder(digest)
            if folder.exists():
                doomed = self.root / "staging" / f"removed-{uuid.uuid4().hex}"
                folder.chmod(0o755)
                os.replace(folder, doomed)
                _remove_tree(doomed)
            _seen.pop(folder, None)
            self._manifest_path(digest).unlink(missing_ok=True)
            self._manifest_path(digest).with_suffix(".artifact.json").unlink(missing_ok=True)

    # Space

    def require_space(self, needed_bytes: int, what: str) -> None:
        """Say before the work starts that the disk is too small for it.

        Raises:
            ValueError: with what is needed, what is free, and what to do.
        """
        free = shutil.disk_usage(self.root).free
        if free < needed_bytes:
            raise ValueError(
                f"{what} needs about {needed_bytes / GIB:.1f} GiB in {self.root}, and {free / GIB:.1f} GiB are free: "
                "free some with `posttrain artifacts gc`, or set POSTTRAIN_HOME to a folder on a larger disk"
            )
