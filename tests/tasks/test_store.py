"""The artifact store: what goes in comes out, or is known to be damaged."""

import os
import shutil
from pathlib import Path

import pytest

from tasks import store as store_module
from tasks.locks import FlockLocks, file_lock, is_free, try_lock
from tasks.store import Artifact, ArtifactInvalid, Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def put(store: Store, files: dict[str, bytes], kind: str = "policy", **meta: object) -> Artifact:
    staging = store.new_staging()
    for name, content in files.items():
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        (staging / name).write_bytes(content)
    artifact = store.put(staging, kind, meta)
    store.discard(staging)
    return artifact


def forget() -> None:
    """What a new process knows of the artifacts: nothing."""
    store_module._seen.clear()


def damage(path: Path, content: bytes, keep_time: bool = False) -> None:
    status = path.stat()
    path.chmod(0o644)
    path.write_bytes(content)
    if keep_time:
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_files_come_back_read_only(store: Store) -> None:
    artifact = put(store, {"model.bin": b"weights", "sub/config.json": b"{}"}, rows=3)
    folder = store.path(artifact)
    assert (folder / "model.bin").read_bytes() == b"weights"
    assert (artifact.size_bytes, artifact.n_files, artifact.meta) == (9, 2, {"rows": 3})
    assert [oct(path.stat().st_mode & 0o777) for path in (folder, folder / "sub", folder / "model.bin")] == ["0o555", "0o555", "0o444"]


def test_digest_depends_on_names_and_bytes_only(store: Store, tmp_path: Path) -> None:
    one = put(store, {"a": b"1", "b": b"2"}, rows=1)
    again = put(Store(tmp_path / "other"), {"b": b"2", "a": b"1"}, rows=2)
    assert one == again
    assert hash(one) == hash(again)
    assert one != put(store, {"a": b"2", "b": b"1"})
    assert one != put(store, {"a": b"1", "c": b"2"})
    assert one != put(store, {"a": b"1", "b": b"2"}, kind="dataset")


def test_same_bytes_are_stored_once(store: Store) -> None:
    first = put(store, {"a": b"1"})
    inode = (store.path(first) / "a").stat().st_ino
    assert put(store, {"a": b"1"}) == first
    assert (store.path(first) / "a").stat().st_ino == inode
    assert not list((store.root / "staging").iterdir())


@pytest.mark.parametrize("fresh", [True, False], ids=["new process", "same process"])
@pytest.mark.parametrize(
    ("how", "said"),
    [("truncate", "has 1 bytes instead of 7"), ("flip", "has other bytes"), ("delete", "is missing"), ("add", "added.json was added")],
)
def test_damage_is_seen_before_use(store: Store, how: str, said: str, fresh: bool) -> None:
    artifact = put(store, {"model.bin": b"weights", "more": b"x"})
    path = store.path(artifact) / "model.bin"
    path.parent.chmod(0o755)
    if how == "truncate":
        damage(path, b"w")
    elif how == "flip":
        damage(path, b"weightz")
    elif how == "delete":
        path.unlink()
    else:
        (path.parent / "added.json").write_text("{}")
    if fresh:
        forget()
    with pytest.raises(ArtifactInvalid, match=said):
        store.path(artifact)


def test_bit_flip_with_the_old_time_is_seen_at_first_use_in_a_process(store: Store) -> None:
    artifact = put(store, {"model.bin": b"weights"})
    damage(store.path(artifact) / "model.bin", b"weightz", keep_time=True)
    assert store.problems(artifact) == []  # this process has hashed the file, and it looks the same
    assert store.problems(artifact, "full") == ["model.bin has other bytes"]
    forget()
    assert store.problems(artifact) == ["model.bin has other bytes"]


def test_a_file_is_hashed_once_a_process(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = put(store, {"model.bin": b"weights", "more": b"x"})
    forget()
    hashed: list[Path] = []
    original = store_module.sha256_of
    monkeypatch.setattr(store_module, "sha256_of", lambda path: hashed.append(path) or original(path))
    store.path(artifact)
    store.path(artifact)
    Store(store.root).path(artifact)
    assert len(hashed) == 2


def test_changed_or_missing_manifest_is_a_problem(store: Store) -> None:
    artifact = put(store, {"a": b"1"})
    manifest = store.root / "manifests" / f"{artifact.digest}.json"
    manifest.write_text(manifest.read_text().replace('"size":1', '"size":2'))
    assert "manifest was changed" in store.problems(artifact)[0]
    manifest.unlink()
    assert "manifest cannot be used" in store.problems(artifact)[0]


def test_putting_again_heals_a_damaged_copy(store: Store) -> None:
    artifact = put(store, {"a": b"1"})
    damage(store.folder(artifact.digest) / "a", b"2")
    assert put(store, {"a": b"1"}) == artifact
    assert (store.path(artifact) / "a").read_bytes() == b"1"


def test_what_has_no_digest_is_refused(store: Store) -> None:
    empty = store.new_staging()
    with pytest.raises(ValueError, match="wrote no file"):
        store.put(empty, "policy")
    linked = store.new_staging()
    (linked / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="plain files only"):
        store.put(linked, "policy")
    store.discard(empty)
    store.discard(linked)


def test_list_find_and_remove(store: Store) -> None:
    one, two = put(store, {"a": b"1"}), put(store, {"a": b"2"}, kind="dataset")
    assert set(store.list()) == {one, two}
    assert store.find(one.digest[:10]) == one
    with pytest.raises(ValueError, match="0 artifacts start with 'zz'"):
        store.find("zz")
    with pytest.raises(ValueError, match="2 artifacts start with ''"):
        store.find("")
    store.remove(one.digest)
    assert store.list() == [two]
    assert store.problems(one) == ["it is not in the store"]


def test_staging_of_a_dead_writer_is_cleaned_and_of_a_live_one_is_not(store: Store) -> None:
    live = store.new_staging()
    dead = store.root / "staging" / "dead"
    dead.mkdir()
    assert Store(store.root).clean_staging() == 1
    assert live.exists()
    assert not dead.exists()
    store.discard(live)


def test_too_small_a_disk_is_said_before(store: Store) -> None:
    free = shutil.disk_usage(store.root).free
    store.require_space(free // 2, "sft")
    with pytest.raises(ValueError, match=r"sft needs about .* GiB .*posttrain artifacts gc.*POSTTRAIN_HOME"):
        store.require_space(free * 2, "sft")


def test_locks_exclude_and_are_released(tmp_path: Path) -> None:
    locks = FlockLocks(tmp_path)
    assert locks.acquire_lock("k", "me")
    assert locks.acquire_lock("k", "me"), "a holder may ask again"
    assert not locks.acquire_lock("k", "you", acquire_timeout=0)
    assert locks.is_locked("k")
    assert locks.is_lock_holder("k", "me")
    assert not locks.wait_for_lock("k", timeout=0)
    with pytest.raises(ValueError, match="you does not hold"):
        locks.release_lock("k", "you")
    locks.release_lock("k", "me")
    assert not locks.is_locked("k")
    assert locks.wait_for_lock("k", timeout=0)


def test_keys_that_differ_after_a_dot_have_locks_of_their_own(tmp_path: Path) -> None:
    locks = FlockLocks(tmp_path)
    assert locks.acquire_lock("stage.a", "me")
    assert locks.acquire_lock("stage.b", "you", acquire_timeout=0)
    locks.release_lock("stage.a", "me")
    locks.release_lock("stage.b", "you")


def test_a_forked_child_does_not_keep_a_lock_alive(tmp_path: Path) -> None:
    locks = FlockLocks(tmp_path)
    locks.acquire_lock("k", "me")
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(write)
        os.read(read, 1)  # lives until the parent closes the pipe
        os._exit(0)
    os.close(read)
    locks.release_lock("k", "me")
    free = locks.wait_for_lock("k", timeout=5)
    os.close(write)
    os.waitpid(child, 0)
    assert free


def test_file_lock_waits_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x.lock"
    descriptor = try_lock(path)
    assert descriptor is not None
    said: list[str] = []

    def release() -> None:
        said.append("waiting")
        os.close(descriptor)

    with file_lock(path, release):
        assert said == ["waiting"]
        assert not is_free(path)
    assert is_free(path)
