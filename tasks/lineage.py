"""Where an artifact comes from, as the store can prove it: which stage made it, of what, with which settings, back to the data.

A stage key is the digest of its key document, the record of a key names the artifact, and the artifact's digest is that of its bytes: so
a document whose digest is the key, and a record that names the artifact, prove what a report was made of. Nothing here trusts a name.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks import registry
from tasks.cache import NoRecord, recorded
from tasks.key import digest_key, input_digests, load_document
from tasks.registry import RunRecord, StageRecord
from tasks.store import Artifact, ArtifactInvalid, Store


class Unproven(ValueError):
    """The store cannot show that an artifact is what a run says it is."""


@dataclass(frozen=True)
class Step:
    """One stage of a run, and what it made."""

    run: str
    label: str
    key: str
    artifact: Artifact
    document: Mapping[str, Any]

    @property
    def stage(self) -> str:
        """The stage's name."""
        return str(self.document["stage"])

    def input(self, name: str) -> str:
        """Digest of an input; empty where there is none of that name."""
        value = self.document["inputs"].get(name)
        return str(value["digest"]) if isinstance(value, dict) and "digest" in value else ""

    def inputs(self) -> dict[str, str]:
        """Digests of all inputs that are artifacts, by dotted name."""
        return input_digests(self.document)


def proven(store: Store, run: str, label: str, stage: StageRecord) -> Step:
    """A stage of a run with the document that its key stands for, its artifact read in full.

    Raises:
        Unproven: a part is missing or does not fit another.
    """
    if stage.key is None or stage.artifact is None:
        raise Unproven(f"{label} of {run} has no artifact")
    document = load_document(store.root / "keydocs", stage.key)
    if document is None or digest_key(document) != stage.key:
        raise Unproven(f"the key document of {label} of {run} is missing or was changed: run the recipe again")
    try:
        artifact = recorded(store, stage.key)
        store.verify(artifact, "full")
    except (NoRecord, ArtifactInvalid) as error:
        raise Unproven(f"{label} of {run}: {error}") from error
    if artifact != stage.artifact:
        raise Unproven(f"{label} of {run} names {stage.artifact.digest[:12]}, and its key made {artifact.digest[:12]}")
    return Step(run, label, stage.key, artifact, document)


def ancestry(store: Store, digest: str) -> list[Step]:
    """The stages that led to an artifact, it last, as far back as runs and key documents are kept. What is not is left out."""
    makers = _makers(registry.runs())
    found: dict[str, Step] = {}
    pending = [digest]
    while pending:
        wanted = pending.pop()
        for run, label, stage in makers.get(wanted, []):
            step = _step(store, run.name, label, stage)
            if step is not None and wanted not in found:
                found[wanted] = step
                pending += step.inputs().values()
    return _in_order(found, digest)


def _makers(runs: Iterable[RunRecord]) -> dict[str, list[tuple[RunRecord, str, StageRecord]]]:
    """By digest, the stages that made it, the latest first."""
    makers: dict[str, list[tuple[RunRecord, str, StageRecord]]] = {}
    for run in runs:
        for label, stage in run.stages.items():
            if stage.artifact is not None and stage.key is not None:
                makers.setdefault(stage.artifact.digest, []).insert(0, (run, label, stage))
    return makers


def _step(store: Store, run: str, label: str, stage: StageRecord) -> Step | None:
    """Of a past stage, whose files may be gone: its document, if it is the key's."""
    assert stage.key is not None and stage.artifact is not None
    document = load_document(store.root / "keydocs", stage.key)
    if document is None or digest_key(document) != stage.key:
        return None
    return Step(run, label, stage.key, stage.artifact, document)


def _in_order(found: Mapping[str, Step], last: str) -> list[Step]:
    """Every step after those that it needs."""
    ordered: dict[str, Step] = {}

    def add(digest: str) -> None:
        if digest in found and digest not in ordered:
            for needed in found[digest].inputs().values():
                add(needed)
            ordered[digest] = found[digest]

    add(last)
    return list(ordered.values())
