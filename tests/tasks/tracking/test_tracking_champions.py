"""One champion at all times: two promoters, kills at every step, damaged files, MLflow away."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks import champions, decisions, promotion, tracking
from tasks.champions import Busy, Overtaken, Registry, Version
from tasks.decisions import DecisionRecord
from tasks.recorder import Unreachable
from tasks.store import Artifact, ArtifactInvalid, Store

ROOT = Path(__file__).resolve().parents[3]
NAME = "arithmetic"


def stored(home: Path, weights: str) -> Artifact:
    """A policy in the store."""
    store = Store(home / "store")
    staging = store.new_staging()
    (staging / "out").mkdir()
    (staging / "out" / "model.safetensors").write_text(weights)
    artifact = store.put(staging / "out", "policy")
    store.discard(staging)
    return artifact


def accepted(artifact: Artifact, seen: Version | None) -> DecisionRecord:
    return decisions.decision(
        "promote",
        NAME,
        accepted=True,
        candidate="tiny-1/grpo",
        digest=artifact.digest,
        opponent="the one before",
        opponent_digest="",
        champion=seen.number if seen else 0,
        reasons=[],
        checks=[],
        gate={},
    )


def crown(artifact: Artifact, registry: Registry | None = None, seen: Version | None = None) -> Version:
    registry = registry or Registry(NAME)
    seen = seen or registry.champion()
    return promotion.promote(registry, accepted(artifact, seen), artifact, seen, "tiny-1/grpo", lambda: "# Card\n\n## Data\n\nrows\n")


def now() -> Version | None:
    return Registry(NAME).champion()


def number_now() -> int:
    champion = now()
    return champion.number if champion else 0


@pytest.fixture
def policies(home: Path, mlflow) -> Callable[[str], Artifact]:
    return lambda weights: stored(home, weights)


def test_a_champion_is_a_version_with_its_card_and_the_way_back(policies, home, mlflow):
    first = crown(policies("one"))
    second = crown(policies("two"))
    assert (first.number, second.number, number_now()) == (1, 2, 2)
    champion = now()
    assert champion is not None and champion.digest == policies("two").digest and champion.replaced == 1
    version = mlflow.client.get_model_version(NAME, "2")
    assert version.description.strip() == "# Card", "the summary"
    model = mlflow.client.get_logged_model(version.source.removeprefix("models:/"))
    assert model.tags["artifact_digest"] == champion.digest
    assert promotion.card_file(NAME, 2).read_text().endswith("rows\n")
    written = decisions.decisions(NAME)
    moves = [decisions.move_of(record.id) for record in written]
    assert [(move.before, move.after) for move in moves if move] == [(0, 1), (1, 2)]
    assert champion.tags["decision"] == written[1].id
    assert decisions.kept_digests() == {first.digest, second.digest}
    assert not [tag for tag in mlflow.client.get_registered_model(NAME).tags if tag.startswith(champions.CLAIM)]


def test_a_policy_registered_before_keeps_its_version(policies):
    crown(policies("one"))
    crown(policies("two"))
    assert crown(policies("one")).number == 1 and number_now() == 1
    assert [version.number for version in Registry(NAME).versions()] == [1, 2]


def test_a_damaged_candidate_moves_nothing(policies, home):
    crown(policies("one"))
    bad = policies("two")
    path = home / "store" / "objects" / bad.digest[:2] / bad.digest / "model.safetensors"
    status = path.stat()
    path.chmod(0o644)
    path.write_text("twp")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))  # same size and time: only its bytes tell
    with pytest.raises(ArtifactInvalid, match="has other bytes"):
        crown(bad)
    assert number_now() == 1 and [v.number for v in Registry(NAME).versions()] == [1] and len(decisions.decisions()) == 1


def test_a_champion_that_changed_since_the_decision_is_decided_anew(policies):
    registry = Registry(NAME)
    crown(policies("one"))
    seen = registry.champion()
    crown(policies("two"))
    with pytest.raises(Overtaken, match="version 2 of arithmetic became champion meanwhile"):
        crown(policies("three"), registry, seen)
    assert number_now() == 2


def test_of_two_promoters_at_once_one_is_told_to_decide_again(policies):
    crown(policies("one"))
    seen, told = now(), []
    artifacts = [policies("two"), policies("three")]

    def promoter(artifact: Artifact) -> None:
        try:
            told.append(crown(artifact, Registry(NAME), seen).number)
        except Overtaken:
            told.append(0)

    threads = [threading.Thread(target=promoter, args=[artifact]) for artifact in artifacts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(told) == [0, number_now()] and number_now() == 2
    assert len(Registry(NAME).versions()) == len(decisions.decisions(NAME)) == 2, "the other left neither a version nor a decision"


# Other machines: no common folder, only MLflow


def claim(place: str, until: float) -> None:
    text = json.dumps({"place": place, "until": until})
    Registry(NAME).store.ask(lambda client: client.set_registered_model_tag(NAME, f"{champions.CLAIM}theirs", text))


def test_the_claim_of_another_machine_is_waited_for(policies, monkeypatch):
    crown(policies("one"))
    monkeypatch.setattr(champions, "PATIENCE_S", 0.0)
    claim("elsewhere:/output", time.time() + 1e6)
    with pytest.raises(Busy, match="elsewhere:/output is moving the champion of arithmetic"):
        crown(policies("two"))
    assert number_now() == 1
    monkeypatch.setattr(champions, "PATIENCE_S", 60.0)
    drop = threading.Timer(0.5, lambda: claim("elsewhere:/output", time.time() - 1))
    drop.start()
    assert crown(policies("two")).number == number_now() == 2
    drop.join()


@pytest.mark.parametrize("text", ['{"place": "elsewhere", "until": 1}', "no claim", "[]"])
def test_a_claim_that_is_over_or_unreadable_stops_nobody(policies, mlflow, text):
    crown(policies("one"))
    mlflow.client.set_registered_model_tag(NAME, f"{champions.CLAIM}old", text)
    assert crown(policies("two")).number == number_now() == 2
    assert f"{champions.CLAIM}old" not in mlflow.client.get_registered_model(NAME).tags


def test_whoever_takes_longer_than_its_claim_moves_nothing(policies, monkeypatch):
    crown(policies("one"))
    monkeypatch.setattr(champions, "LEASE_S", 0.0)
    with pytest.raises(Busy, match="took longer than its claim"):
        crown(policies("two"))
    assert number_now() == 1


def test_an_alias_moved_by_hand_in_between_is_seen(policies, mlflow, monkeypatch):
    crown(policies("one"))
    crown(policies("two"))
    registry, third = Registry(NAME), policies("three")
    tag = registry._tag

    def slow(number: int, tags) -> None:
        tag(number, tags)
        mlflow.client.set_registered_model_alias(NAME, "champion", "1")

    monkeypatch.setattr(registry, "_tag", slow)
    with pytest.raises(Overtaken, match="version 1, where version 2 was expected"):
        crown(third, registry)
    assert number_now() == 1


# Rollback


def test_rollback_goes_one_back_each_time_and_is_written_down(policies):
    for weights in ("one", "two", "three"):
        crown(policies(weights))
    registry = Registry(NAME)
    assert [promotion.roll_back(registry)[1].number for _ in range(2)] == [2, 1] and number_now() == 1
    with pytest.raises(ValueError, match="version 1 of arithmetic is the first champion: name another with --to"):
        promotion.roll_back(registry)
    promotion.roll_back(registry, 3)
    assert number_now() == 3
    last = decisions.decisions(NAME)[-1]
    move = decisions.move_of(last.id)
    assert (last.action, last.candidate, last.opponent) == ("rollback", "version 3", "version 1")
    assert move is not None and (move.before, move.after) == (1, 3)
    with pytest.raises(ValueError, match="version 3 of arithmetic is the champion already"):
        promotion.roll_back(registry, 3)
    with pytest.raises(ValueError, match="has no version 9; it has 1, 2, 3"):
        promotion.roll_back(registry, 9)


def test_rollback_to_what_is_gone_is_refused_and_written_down(policies, home):
    first = crown(policies("one"))
    crown(policies("two"))
    Store(home / "store").remove(first.digest)
    record, _ = promotion.roll_back(Registry(NAME))
    assert not record.accepted and record.reasons == ["it is not in the store"] and number_now() == 2
    assert decisions.decisions(NAME)[-1] == record and decisions.move_of(record.id) is None


def test_there_is_nothing_to_roll_back_before_the_first(policies):
    with pytest.raises(ValueError, match="arithmetic has no champion: promote one first"):
        promotion.roll_back(Registry(NAME))


# MLflow away


def test_without_mlflow_nothing_is_decided_or_moved(policies, monkeypatch):
    crown(policies("one"))
    seen = now()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    away = Registry(NAME)
    for question in (away.champion, lambda: crown(policies("two"), away, seen), lambda: promotion.roll_back(away)):
        with pytest.raises(Unreachable):
            question()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert number_now() == 1 and len(decisions.decisions()) == 1


@pytest.mark.parametrize("name", ["a/b", "", "../x", "x" * 101, "a'b"])
def test_a_name_that_cannot_be_one(name, mlflow):
    with pytest.raises(ValueError, match="is no name for a registered model"):
        Registry(name)


# Kills

KILLED = """
    import os
    import sys
    from pathlib import Path
    sys.path.insert(0, "tests/tasks/tracking")
    import mlflow.store.tracking.sqlalchemy_store  # before the forks, so that none of them imports it again
    import test_tracking_champions as ours
    from tasks import promotion
    from tasks.champions import Registry
    home = Path(os.environ["POSTTRAIN_HOME"])
    def victim(action, place):
        os.environ["POSTTRAIN_FAILPOINT"] = place
        if action == "rollback":
            promotion.roll_back(Registry(ours.NAME))
        else:
            ours.crown(ours.stored(home, action))
    def reader(place, status):
        registry = Registry(ours.NAME)
        champion = registry.champion()
        promotion.settle(registry, champion)
        print(place, os.WTERMSIG(status), champion.number, flush=True)
    def forked(function, *arguments):  # a database is not taken over a fork: the parent opens none
        child = os.fork()
        if child == 0:
            function(*arguments)
            os._exit(0)
        return os.waitpid(child, 0)[1]
    for action, place in [line.split() for line in sys.stdin.read().splitlines()]:
        forked(reader, place, forked(victim, action, place))
"""


def test_a_kill_at_any_step_leaves_the_champion_before_or_the_one_after(policies, home, mlflow):
    """Each step is cut once, and the one after it begins anew: verified, decided, registered, tagged: before; moved: after."""
    crown(policies("one"))
    steps = [(place, f"two {place}") for place in ("verified", "decided", "registered", "tagged", "moved")]
    lines = [f"{place}-weights {place}" for place, _ in steps] + ["rollback decided", "rollback tagged", "rollback moved"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW")} | {"POSTTRAIN_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(KILLED)],
        input="\n".join(lines),
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    seen = [tuple(line.split()) for line in done.stdout.splitlines()]
    assert seen, done.stderr
    sigkill = str(signal.SIGKILL.value)
    assert [(place, killed) for place, killed, _ in seen] == [(line.split()[1], sigkill) for line in lines], done.stderr
    numbers = [int(number) for *_, number in seen]
    before, after = numbers[:4], numbers[4]
    assert before == [1] * 4 and after != 1, "the alias moves in the last step and in no other"
    assert numbers[5:] == [after, after, 1], "a rollback is cut the same way"
    moves = [move for record in decisions.decisions(NAME) if (move := decisions.move_of(record.id))]
    assert [(move.before, move.after) for move in moves] == [(0, 1), (1, after), (after, 1)], "also the moves that were cut are known"
    assert crown(policies("tagged-weights")).number == number_now(), "the same command finishes what was begun"
    assert not [tag for tag in mlflow.client.get_registered_model(NAME).tags if tag.startswith(champions.CLAIM)]
    assert tracking.tracking_uri().startswith("sqlite")
