"""Carrying a decision out: the record, the version, its card, and last the alias, in this order, so that a kill at any step moves nothing
that was not decided, and the same command finishes what was begun.

    promote: decision on disk -> version with its card -> tags -> alias -> its move on disk
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from models.run import write_atomic
from tasks import decisions
from tasks.champions import Overtaken, Registry, Version, failpoint
from tasks.decisions import DecisionRecord
from tasks.home import home
from tasks.store import Artifact, Store

CARD = "card.md"
SUMMARY_END = "\n## Data"  # the description of a version is the card up to here


def promote(
    registry: Registry, record: DecisionRecord, artifact: Artifact, seen: Version | None, label: str, card: Callable[[], str]
) -> Version:
    """Register an accepted candidate and give it the alias.

    Args:
        registry: of the model.
        record: the decision; accepted.
        artifact: the candidate, which is read in full before anything is written.
        seen: the champion that it was compared with.
        label: what the candidate is called.
        card: makes its model card.

    Raises:
        ArtifactInvalid: the candidate is not what its digest says.
        Overtaken: another became champion meanwhile: decide again.
        Busy, Unreachable: nothing was moved.
    """
    assert record.accepted and record.digest == artifact.digest
    with registry.claimed():
        _require_seen(registry, seen)
        Store(home() / "store").verify(artifact, "full")
        failpoint("verified")
        decisions.write(record)
        failpoint("decided")
        text = card()
        version = registry.register(artifact, label, text.partition(SUMMARY_END)[0])
        failpoint("registered")
        _write_card(registry.name, version, text)
        before = seen.number if seen else 0
        registry.move(version, seen, {"decision": record.id, "replaced": str(before)})
        decisions.write_move(record, before, version.number)
        return version


def roll_back(registry: Registry, to: int = 0) -> tuple[DecisionRecord, Version]:
    """Give the alias back to the champion before this one, or to a version, after reading all of its bytes.

    Raises:
        ValueError: there is no champion, none before it, or no such version.
        ArtifactInvalid: the version's files are missing or damaged; nothing was moved, and the refusal is written down.
        Overtaken, Busy, Unreachable: nothing was moved.
    """
    with registry.claimed():
        champion = registry.champion()
        if champion is None:
            raise ValueError(f"{registry.name} has no champion: promote one first")
        target = registry.version(to or _before(registry, champion))
        if target.number == champion.number:
            raise ValueError(f"version {target.number} of {registry.name} is the champion already")
        problems = _problems(target)
        record = decisions.decision(
            "rollback",
            registry.name,
            accepted=not problems,
            candidate=f"version {target.number}",
            digest=target.digest,
            opponent=f"version {champion.number}",
            opponent_digest=champion.digest,
            champion=champion.number,
            reasons=problems,
            checks=[],
            gate={},
        )
        decisions.write(record)
        failpoint("decided")
        if not problems:
            registry.move(target, champion, {"returned_by": record.id})
            decisions.write_move(record, champion.number, target.number)
        return record, target


def settle(registry: Registry, champion: Version) -> None:
    """Write down the move to the present champion if whoever made it was killed before it could."""
    named = {champion.tags.get("decision", ""), champion.tags.get("returned_by", "")}
    known = {record.id: record for record in decisions.decisions(registry.name) if record.id in named}
    if known:
        last = known[max(known)]  # ids sort by time; an earlier one was never carried out
        if decisions.move_of(last.id) is None:
            decisions.write_move(last, last.champion, champion.number)


def card_file(name: str, version: int) -> Path:
    """Where the model card of a version lies."""
    return home() / "registry" / name / f"version-{version}" / CARD


def _write_card(name: str, version: Version, text: str) -> None:
    path = card_file(name, version.number)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)


def _require_seen(registry: Registry, seen: Version | None) -> None:
    now = registry.champion()
    if (now.number if now else 0) != (seen.number if seen else 0):
        raise Overtaken(f"version {now.number if now else 0} of {registry.name} became champion meanwhile")


def _before(registry: Registry, champion: Version) -> int:
    if not champion.replaced:
        raise ValueError(f"version {champion.number} of {registry.name} is the first champion: name another with --to VERSION")
    return champion.replaced


def _problems(version: Version) -> list[str]:
    """What is wrong with the files of a version."""
    artifact = Artifact(kind=version.tags.get("artifact_kind", "policy"), digest=version.digest, size_bytes=0, n_files=0)
    return Store(home() / "store").problems(artifact, "full")
