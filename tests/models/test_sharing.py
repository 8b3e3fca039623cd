"""Chunks shared out: each is computed once, by whoever claims it, and is the same whoever that is."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from data.claims import claim
from models import sharing, spending
from models.chunks import map_chunks
from models.configs.evaluation import EvaluateConfig
from models.configs.preferences import PreferencesConfig
from models.configs.sampling import SamplingConfig
from models.run import Run, write_atomic
from models.sharing import Sharing, computed_by
from tasks.process import ZYGOTE_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
ITEMS = list(range(8))
Work = Callable[[int, Sequence[int]], list[int]]


class Gone(Exception):
    """A process is ended."""


@pytest.fixture
def party(new_run: Callable[..., Run], tmp_path: Path) -> Iterator[Callable[[bool], Run]]:
    """Makes runs of one stage that share their chunks: the leader's, or a follower's that ends with the test."""
    folder = tmp_path / "sharing"
    folder.mkdir()
    over = threading.Event()

    def tick() -> None:
        if over.is_set():
            raise Gone

    def make(leads: bool) -> Run:
        run = new_run()
        run.sharing = Sharing(folder, leads, tick, followers=1)
        run.sharing.who += "" if leads else "-follower"
        return run

    yield make
    over.set()


def doubled(number: int, chunk: Sequence[int]) -> list[int]:
    return [2 * item for item in chunk]


def generating(number: int, chunk: Sequence[int]) -> list[int]:
    """The same, of ten generated tokens."""
    spending.count_generated(10)
    return doubled(number, chunk)


def follow(stage: Callable[[], Any]) -> threading.Thread:
    def guarded() -> None:
        try:
            stage()
        except (Gone, ValueError):
            return

    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    return thread


def until(seen: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not seen():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_follower_computes_what_the_leader_has_not_and_the_leader_reads_it(party: Callable[[bool], Run]):
    follower, leader = party(False), party(True)
    counted = spending.generated_tokens()

    follow(lambda: map_chunks(follower, "twice", ITEMS, 2, generating))
    until(lambda: len(list(leader.checkpoints.glob("twice-*.json"))) == 4)
    never: Work = lambda number, chunk: pytest.fail("it was there")  # noqa: E731
    assert map_chunks(leader, "twice", ITEMS, 2, never) == [2 * item for item in ITEMS]
    assert computed_by(follower.sharing.folder) == {follower.sharing.who: 4}
    assert spending.generated_tokens() == counted + 80, "once where they were generated, once where they count"


def test_the_leader_waits_for_the_word_of_who_made_a_result(party: Callable[[bool], Run], monkeypatch: pytest.MonkeyPatch):
    follower, leader = party(False), party(True)
    computed = Sharing._computed

    def slow_to_tell(self: Sharing, name: str, number: int) -> Iterator[int]:
        counted = computed(self, name, number)
        yield next(counted)
        time.sleep(0.3)  # its result is there
        yield from counted

    monkeypatch.setattr(Sharing, "_computed", slow_to_tell)
    counted = spending.generated_tokens()

    follow(lambda: map_chunks(follower, "twice", ITEMS, 4, generating))
    until(lambda: len(list(leader.checkpoints.glob("twice-*.json"))) == 2)
    assert map_chunks(leader, "twice", ITEMS, 4, doubled) == [2 * item for item in ITEMS]
    assert spending.generated_tokens() == counted + 40, "also for the last, whose word came after its result"


def test_a_result_of_an_earlier_attempt_is_not_waited_for(party: Callable[[bool], Run]):
    leader = party(True)
    write_atomic(leader.checkpoints / "twice-00001.json", "[8, 10, 12, 14]")
    assert map_chunks(leader, "twice", ITEMS, 4, doubled) == [2 * item for item in ITEMS]


def test_nobody_computes_what_another_has_claimed(party: Callable[[bool], Run]):
    leader = party(True)
    worked: list[int] = []

    def work(number: int, chunk: Sequence[int]) -> list[int]:
        worked.append(number)
        return doubled(number, chunk)

    with claim(leader.sharing.folder / "twice-00001.claim") as mine:
        assert mine
        thread = follow(lambda: map_chunks(leader, "twice", ITEMS, 2, work))
        until(lambda: len(worked) == 3)
        time.sleep(0.2)
        assert worked == [0, 2, 3] and thread.is_alive()
    thread.join(20)  # whoever held it is gone without a result: it is the leader's again
    assert worked == [0, 2, 3, 1]


def test_a_claim_that_is_held_too_long_is_not_waited_for(party: Callable[[bool], Run], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sharing, "LATE_S", 0.2)
    leader = party(True)
    with claim(leader.sharing.folder / "twice-00001.claim"):
        assert map_chunks(leader, "twice", ITEMS, 2, doubled) == [2 * item for item in ITEMS]


def test_between_calls_a_follower_waits_for_the_leader(party: Callable[[bool], Run]):
    """What lies between, such as measuring by another model, is computed once, and a follower is there for the next call."""
    follower, leader = party(False), party(True)
    between: list[str] = []

    def stage(run: Run, who: str) -> list[int]:
        first = map_chunks(run, "first", ITEMS, 4, doubled)
        between.append(who)
        return map_chunks(run, "second", first, 2, doubled)

    follow(lambda: stage(follower, "follower"))
    until(lambda: len(list(leader.checkpoints.glob("first-*.json"))) == 2)
    time.sleep(0.2)
    assert between == []
    assert stage(leader, "leader") == [4 * item for item in ITEMS]
    until(lambda: between == ["leader", "follower"])


def test_what_is_not_to_be_shared_is_the_leaders(party: Callable[[bool], Run]):
    follower, leader = party(False), party(True)
    by: list[str] = []

    def work(who: str) -> Work:
        return lambda number, chunk: by.append(who) or list(chunk)

    def stage(run: Run, who: str) -> None:
        map_chunks(run, "one", ITEMS, 99, work(who))
        map_chunks(run, "asked", ITEMS, 2, work(who), shared=False)

        def outer(number: int, chunk: Sequence[int]) -> list[int]:
            return map_chunks(run, f"inner-{number}", chunk, 1, work(who))

        map_chunks(run, "outer", ITEMS[:2], 1, outer)

    follow(lambda: stage(follower, "follower"))
    time.sleep(0.2)
    assert by == []
    stage(leader, "leader")
    assert by[:5] == ["leader"] * 5 and len(by) == 7, "of the last call, who computes the outer chunk computes the inner ones"


def test_what_a_follower_cannot_compute_the_leader_does_and_fails_as_alone(party: Callable[[bool], Run]):
    follower, leader = party(False), party(True)

    def work(number: int, chunk: Sequence[int]) -> list[int]:
        if number == 2:
            raise ValueError(f"no words in {list(chunk)}")
        return list(chunk)

    follow(lambda: map_chunks(follower, "read", ITEMS, 2, work)).join(20)
    assert (follower.sharing.folder / "read-00002.refused").exists()
    assert follow(lambda: map_chunks(party(False), "read", ITEMS, 2, work)).is_alive(), "another one leaves it alone, and waits"
    with pytest.raises(ValueError, match=r"no words in \[4, 5\]") as caught:
        map_chunks(leader, "read", ITEMS, 2, work)
    assert caught.value.__notes__ == ["(in chunk 2 of read, 2 items)"]


def test_a_host_that_computes_otherwise_stands_aside(party: Callable[[bool], Run], monkeypatch: pytest.MonkeyPatch):
    follower, _ = party(False), party(True)
    follower.sharing.require_same_machine()
    monkeypatch.setattr(sharing, "machine", lambda: "another processor")
    with pytest.raises(ValueError, match=r"is 'another processor' and the stage runs on '.*torch.*let Ray workers run on hosts of the"):
        follower.sharing.require_same_machine()


def test_a_stage_that_does_not_replay_is_noticed(party: Callable[[bool], Run]):
    follower, leader = party(False), party(True)
    map_chunks(leader, "chosen by chance: 1", ITEMS, 2, doubled)
    with pytest.raises(RuntimeError, match="computes chosen by chance: 1 and this process, which follows it, chosen by chance: 2"):
        map_chunks(follower, "chosen by chance: 2", ITEMS, 2, doubled)


# Real stages, all of whose chunks a follower computes in its own process

SAMPLING = SamplingConfig(max_tokens=5)
EVALUATE = EvaluateConfig(samples_per_prompt=2, sampling=SAMPLING, chunk_prompts=2, micro_batch_tokens=64)
COLLECT = PreferencesConfig.model_validate(
    {
        "samples_per_prompt": 3,
        "sampling": SAMPLING,
        "chunk_prompts": 2,
        "judges": [{"kind": "reward_model", "micro_batch_tokens": 64}],
        "lint": "off",
    }
)


@pytest.mark.parametrize("name", ["evaluate", "collect"])
def test_every_chunk_of_a_follower_is_the_stages_own(
    name: str, stage_process: Callable[..., Any], tmp_path: Path, base: Path, other: Path, reward_folder: Path, tables: Path
):
    entry, config, inputs = {
        "evaluate": (
            "models.evaluation:evaluate",
            EVALUATE,
            {"policy": other, "reference": base, "data": tables, "reward": reward_folder, "held_out_reward": reward_folder},
        ),
        "collect": ("models.preferences:collect", COLLECT, {"policies": {"sft": other}, "data": tables, "reward": reward_folder}),
    }[name]
    alone = stage_process(tmp_path / "alone", entry, config, inputs)
    alone.run()
    names = {path.name for path in alone.checkpoints.glob("*-?????.json")}
    assert {name.rpartition("-")[0] for name in names} == {
        "evaluate": {"answers", "logp", "ref_logp", "reward", "held_out_reward"},
        "collect": {"sampled", "judged-0"},
    }[name]
    shared = stage_process(tmp_path / "shared", entry, config, inputs)
    followed(shared, names, tmp_path / "sharing")
    shared.run()
    assert shared.digests() == alone.digests()
    for chunk in names:
        assert (shared.checkpoints / chunk).read_bytes() == (alone.checkpoints / chunk).read_bytes()
    (by,) = computed_by(tmp_path / "sharing")
    assert str(by).endswith(str(shared.follower.pid)), "the leader computed nothing"


def followed(stage: Any, chunks: set[str], folder: Path) -> None:
    """Have a follower compute all chunks, before there is a leader."""
    folder.mkdir()
    (folder / "leader.json").write_text(json.dumps({"machine": sharing.machine()}))
    for number, call in enumerate(("answers", "logp", "ref_logp", "reward", "held_out_reward", "end")):
        name = {0: "sampled", 1: "judged-0"}.get(number, "end") if "sampled-00000.json" in chunks else call
        (folder / f"call-{number:03d}.json").write_text(json.dumps({"name": name}))
    spec = stage.spec(folder.with_name("follower")) | {"sharing": str(folder), "followers": 1}
    (folder / "spec.json").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "models.followers", str(folder / "spec.json"), str(os.getpid())]
    stage.follower = subprocess.Popen(command, cwd=ROOT, env={**os.environ, **ZYGOTE_ENVIRONMENT})
    try:
        end = time.monotonic() + 200
        while not all((stage.checkpoints / name).exists() for name in chunks):
            assert stage.follower.poll() in (None, 0) and time.monotonic() < end, Path(spec["log"]).read_text()
            time.sleep(0.05)
    finally:
        stage.follower.kill()
        stage.follower.wait()
    stage.more = {"sharing": str(folder), "followers": 1}

