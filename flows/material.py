"""What a retraining would learn from, and what of it is new since the champion: labels of people, rows of data, the base model.

What the champion was made of is read from the key documents of the stages that led to it (tasks/lineage.py), not from what a run says.
Nothing is computed here, so that a night without news costs seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.blocks.configs import BlockConfig
from data.blocks.replay import ALL
from data.configs import CurateConfig, SourceConfig
from data.files import sha256_of
from data.growth import lines_kept
from data.records import canonical_json
from flows.given_labels import Labels, collect, known_labels
from models.configs.base_model import BaseModelConfig
from models.configs.retrain import NewsConfig
from tasks.home import home
from tasks.key import semantic
from tasks.lineage import Step, ancestry
from tasks.store import Store


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    new: bool
    words: str

    def row(self) -> dict[str, str]:
        """As a row of the table in Prefect."""
        return {"what": self.what, "new": "yes" if self.new else "no", "found": self.words}


@dataclass(frozen=True)
class Material:
    """Everything that was looked at, and the data that a retraining would curate: all new rows beside a share of the old ones."""

    findings: list[Finding]
    curate: CurateConfig
    names: Mapping[str, Any] = field(default_factory=dict)  # what it is, by content: the same material, the same values

    @property
    def new(self) -> list[Finding]:
        """What is new."""
        return [finding for finding in self.findings if finding.new]

    def digest(self, settings: Mapping[str, Any]) -> str:
        """Names this material under these settings."""
        return hashlib.sha256(canonical_json([self.names, settings]).encode("utf-8", "surrogatepass")).hexdigest()[:16]


def look(curate: CurateConfig, base: BaseModelConfig | None, news: NewsConfig, champion: str) -> Material:
    """What there is to learn from, and what of it is new since a champion.

    Args:
        curate: the data, before labels are added and old rows drawn.
        base: base model to start from; None where training starts from the champion.
        news: what to look at.
        champion: digest of the champion's policy; empty: there is none, and everything is new.

    Raises:
        FileNotFoundError, ValueError: a data file or a labelling task is missing.
    """
    steps = ancestry(Store(home() / "store"), champion) if champion else []
    sources = _Sources([step for step in steps if step.stage == "curate"])
    looked = [sources.look(source) for source in curate.sources if source.role != "test"]
    labels = collect(news.labels, known_labels(steps))
    findings = [_base_finding(base, steps), *(finding for found in looked for finding in found), _labels_finding(labels, news)]
    old = sources.old | {str(path): ALL for path in labels.old_files}
    return Material(
        [Finding("champion", True, "none yet: everything is new"), *findings] if not champion else findings,
        _mixed(curate, labels, old, news.old_share),
        {"base": _base_names(base) if base else "", "files": sources.digests, "labels": labels.digest, "champion": champion},
    )


def _mixed(curate: CurateConfig, labels: Labels, old: Mapping[str, int], share: float) -> CurateConfig:
    """The data with the labels as further sources, and the block that draws the old rows before all others."""
    given = [SourceConfig(kind="file", name=str(path), role="train", form="preference") for path in labels.files]
    replay = [BlockConfig(kind="replay", settings={"share": share, "old": dict(sorted(old.items()))})] if old and share < 1 else []
    return curate.model_copy(update={"sources": [*curate.sources, *given], "blocks": [*replay, *curate.blocks]})


# The base model


def _base_names(base: BaseModelConfig) -> dict[str, Any]:
    return {"config": semantic(base), "extra": base.cache_extra()}


def _base_finding(base: BaseModelConfig | None, steps: list[Step]) -> Finding:
    if base is None:
        return Finding("base model", False, "not looked at: training starts from the champion")
    known = [step.document for step in steps if step.stage == "base_model"]
    own = _base_names(base)
    if any({"config": document["config"], "extra": document["extra"]} == own for document in known):
        return Finding("base model", False, f"{_called(own)}, as the champion's")
    was = f"; the champion's was {', '.join(map(_called, known)) or 'not recorded'}" if steps else ""
    return Finding("base model", True, f"{_called(own)}{was}")


def _called(document: Mapping[str, Any]) -> str:
    config = document["config"]
    return str(config["kind"]) if config["kind"] == "scratch" else f"{config['kind']}:{config['name']}"


# Labels


def _labels_finding(labels: Labels, news: NewsConfig) -> Finding:
    if not news.labels:
        return Finding("labels", False, "not looked at")
    words = f"{labels.new} new of {labels.count} labels, in {labels.tasks} tasks"
    if 0 < labels.new < news.min_labels:
        words += f"; {news.min_labels} new ones are worth a retraining"
    return Finding("labels", labels.new >= news.min_labels, words)


# Data


class _Sources:
    """Sources compared with those that the champion's data were curated from."""

    def __init__(self, curated: list[Step]) -> None:
        self.configs = [source for step in curated for source in step.document["config"]["sources"]]
        self.known = {str(value) for step in curated for value in step.document["extra"].values()}
        self.digests: dict[str, Any] = {}
        self.old: dict[str, int] = {}

    def look(self, source: SourceConfig) -> list[Finding]:
        """One line for a set or a task, and one for each file."""
        return [self._file(path) for path in source.paths()] if source.kind == "file" else [self._other(source)]

    def _file(self, path: Path) -> Finding:
        digest = self.digests[str(path)] = sha256_of(path)
        if digest in self.known:
            self.old[str(path)] = ALL
            return Finding(f"data {path.name}", False, "as the champion's")
        kept = lines_kept(path, self.known)
        if kept:
            self.old[str(path)] = kept
            return Finding(f"data {path.name}", True, f"rows were added after line {kept}")
        was_there = any(source["kind"] == "file" and Path(source["name"]).name == path.name for source in self.configs)
        return Finding(f"data {path.name}", True, "changed: all of its rows count as new" if was_there else "a new file")

    def _other(self, source: SourceConfig) -> Finding:
        own = semantic(source)
        self.digests[source.place] = own
        if own not in self.configs:
            return Finding(f"data {source.place}", True, "a new source, or one with other settings")
        if source.kind == "hub":
            self.old[hub_place(source)] = ALL
        return Finding(f"data {source.place}", False, "as the champion's")


def hub_place(source: SourceConfig) -> str:
    """What rows of a hub set are said to be from, as data/sources.py has it."""
    return f"hub:{source.name}" + (f"/{source.subset}" if source.subset else "") + f"[{source.split}]"
