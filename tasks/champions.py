"""Champions: versions of a registered model in MLflow, of which the one with the alias `champion` is in use.

MLflow keeps one version an alias, and replaces it in one step: there is a champion at every moment after the first. What it lacks is a way
to replace it only if it is still the one that was looked at. So whoever moves it is alone:

* on this machine by a file lock in the output folder, which the kernel drops when its holder dies;
* between machines by a claim, a tag of the registered model. Each puts up its own, then looks for others, and steps back if it sees one:
  of two, the later to look sees both. The claim of a machine that died ends with its lease.

Inside, the champion is read again before the move, and after it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import re
import signal
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from models.run import write_atomic
from tasks import decisions, tracking
from tasks.locks import file_lock
from tasks.recorder import Refused, Unreachable
from tasks.store import Artifact
from tasks.tracked import reference_of

log = logging.getLogger(__name__)

ALIAS = "champion"
CLAIM = "promoting."
LEASE_S = 300.0  # after which the claim of another machine counts as abandoned; its holder stops well before
PATIENCE_S = 60.0
LONGEST_DESCRIPTION = 4900  # characters; some of MLflow's databases hold no more

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class Busy(RuntimeError):
    """Another machine is moving the alias now, or this one took too long over it. Nothing was moved."""


class Overtaken(RuntimeError):
    """The champion is another than the one that the decision was about."""


@dataclass(frozen=True)
class Version:
    """A version of a registered model."""

    number: int
    digest: str
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def replaced(self) -> int:
        """The version that was champion before this became it; 0 if none was."""
        return int(self.tags.get("replaced") or 0)


class Registry:
    """The versions of one registered model.

    Raises:
        ValueError: a name that cannot be one of a model, a file and a tag at once.
    """

    def __init__(self, name: str) -> None:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no name for a registered model: use letters, digits, '.', '_' and '-', at most 100")
        self.name = name
        self.store = tracking.connected()
        self._until = 0.0

    # Reading

    def champion(self) -> Version | None:
        """The version in use, read from MLflow now. Raises Unreachable."""
        number = self._aliases().get(ALIAS)
        return self.version(int(number)) if number is not None else None

    def version(self, number: int) -> Version:
        """A version. Raises ValueError if there is none of that number."""
        try:
            return _version(self.store.ask(lambda client: client.get_model_version(self.name, str(number))))
        except Refused as error:
            raise ValueError(f"{self.name} has no version {number}; it has {self._numbers() or 'none yet'}") from error

    def versions(self, digest: str = "") -> list[Version]:
        """All versions, or those of one artifact, the oldest first."""
        condition = f"name = '{self.name}'" + (f" and tags.artifact_digest = '{digest}'" if digest else "")
        found = self.store.ask(lambda client: client.search_model_versions(condition, max_results=1000))
        return sorted((_version(one) for one in found), key=lambda version: version.number)

    def _numbers(self) -> str:
        return ", ".join(str(version.number) for version in self.versions())

    def _model(self) -> Any | None:
        try:
            return self.store.ask(lambda client: client.get_registered_model(self.name))
        except Refused as error:
            if getattr(error.__cause__, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def _aliases(self) -> dict[str, Any]:
        model = self._model()
        return dict(model.aliases) if model is not None else {}

    # Being alone

    @contextlib.contextmanager
    def claimed(self) -> Iterator[None]:
        """Be the only one, on this machine and on others, who moves the alias.

        Raises:
            Busy: another machine is at it and does not finish.
            Unreachable: MLflow is away.
        """
        with file_lock(decisions.folder() / f"{self.name}.lock"):
            self._create()
            tag = self._claim()
            try:
                yield
            finally:
                self._until = 0.0
                self._drop(tag)

    def _create(self) -> None:
        try:
            if self._model() is None:
                self.store.ask(lambda client: client.create_registered_model(self.name, tags={"made_by": "posttrain"}))
        except Refused as error:
            if getattr(error.__cause__, "error_code", "") != "RESOURCE_ALREADY_EXISTS":  # another machine was faster
                raise

    def _claim(self) -> str:
        end = time.monotonic() + PATIENCE_S
        while True:
            tag, begun = f"{CLAIM}{uuid.uuid4().hex}", time.monotonic()
            claim = json.dumps({"place": _place(), "until": time.time() + LEASE_S})
            self.store.ask(lambda client, tag=tag, claim=claim: client.set_registered_model_tag(self.name, tag, claim))
            others = self._others(tag)
            if not others:
                self._until = begun + LEASE_S / 2
                return tag
            self._drop(tag)
            if time.monotonic() > end:
                raise Busy(f"{', '.join(others)} is moving the champion of {self.name}; nothing was moved here, try again")
            time.sleep(random.uniform(0.05, 0.5))

    def _others(self, own: str) -> list[str]:
        """Where live claims of others are; claims that are over are removed."""
        model = self._model()
        places = []
        for tag, text in (model.tags if model is not None else {}).items():
            if not tag.startswith(CLAIM) or tag == own:
                continue
            place, until = _read_claim(text)
            # Of this output folder none can live but ours: we hold its file lock.
            if place == _place() or until < time.time():
                self._drop(tag)
            else:
                places.append(place)
        return places

    def _drop(self, tag: str) -> None:
        try:
            self.store.ask(lambda client: client.delete_registered_model_tag(self.name, tag))
        except (Unreachable, Refused) as error:
            log.warning("The claim on %s could not be dropped; other machines wait %.0f s for it: %s", self.name, LEASE_S, error)

    # Writing, inside `claimed` only

    def register(self, artifact: Artifact, label: str, description: str) -> Version:
        """The version of an artifact: that of an earlier try, or a new one."""
        text = description[:LONGEST_DESCRIPTION]
        found = self.versions(artifact.digest)
        if found:
            self.store.ask(lambda client: client.update_model_version(self.name, str(found[0].number), description=text))
            return found[0]
        model_id = self.store.logged_model(reference_of(label, artifact))
        tags = {"artifact_digest": artifact.digest, "artifact_kind": artifact.kind, "policy": label}
        source = f"models:/{model_id}"
        with _default_store(self.store.uri):
            return _version(
                self.store.ask(
                    lambda client: client.create_model_version(self.name, source, tags=tags, description=text, model_id=model_id)
                )
            )

    def move(self, to: Version, expected: Version | None, tags: Mapping[str, str]) -> None:
        """Give a version the alias, if the champion is still the expected one.

        Raises:
            Busy: the claim is about to end.
            Overtaken: the champion is another one, before or after the move.
        """
        assert self._until, "the alias is moved inside `claimed` only"
        before = expected.number if expected else 0
        self._tag(to.number, tags)
        failpoint("tagged")
        self._require(before)
        if time.monotonic() > self._until:
            raise Busy(f"the decision on {self.name} took longer than its claim; nothing was moved, try again")
        self.store.ask(lambda client: client.set_registered_model_alias(self.name, ALIAS, str(to.number)))
        failpoint("moved")
        self._require(to.number)

    def _require(self, number: int) -> None:
        now = int(self._aliases().get(ALIAS, 0))
        if now != number:
            raise Overtaken(f"the champion of {self.name} is version {now}, where version {number} was expected")

    def _tag(self, number: int, tags: Mapping[str, str]) -> None:
        for name, value in tags.items():
            self.store.ask(
                lambda client, name=name, value=value: client.set_model_version_tag(self.name, str(number), name, value)
            )


def failpoint(name: str) -> None:
    """Die by SIGKILL here if POSTTRAIN_FAILPOINT names this place, as `models.run.Run.failpoint` does in a stage. For the tests."""
    if os.environ.get("POSTTRAIN_FAILPOINT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def _version(found: Any) -> Version:
    return Version(int(found.version), str(found.tags.get("artifact_digest", "")), dict(found.tags))


def _place() -> str:
    """This machine and output folder, by a name that no other has: hosts and paths are called the same elsewhere. Under the file lock."""
    path = decisions.folder() / "place"
    if not path.exists():
        write_atomic(path, f"{socket.gethostname()}-{uuid.uuid4().hex}")
    return path.read_text(encoding="utf-8")


def _read_claim(text: str) -> tuple[str, float]:
    """Place and end of a claim; one that cannot be read is over."""
    try:
        claim = json.loads(text)
        return str(claim["place"]), float(claim["until"])
    except (ValueError, TypeError, KeyError):
        return "", 0.0


@contextlib.contextmanager
def _default_store(uri: str) -> Iterator[None]:
    """MLflow looks a model up in the default store while it registers it, whatever store its client is of."""
    if "MLFLOW_TRACKING_URI" in os.environ:
        yield
        return
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        os.environ.pop("MLFLOW_TRACKING_URI", None)
