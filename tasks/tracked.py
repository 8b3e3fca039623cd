"""The handles of tracked runs: what a flow and its stages hold while MLflow is told, in the background, what they do."""

from __future__ import annotations

import contextvars
import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel

from tasks import owner, provenance
from tasks.home import home
from tasks.journal import Point
from tasks.recorder import AddPoints, AddText, CloseRun, OpenRun, Record, Recorder, Reference, Status, now_ms, store_undelivered
from tasks.store import Artifact

log = logging.getLogger(__name__)

LARGEST_FILE_BYTES = 1 << 20

Params = Mapping[str, Any] | BaseModel


class TrackingStore(Protocol):
    """Where records go; `tasks.tracking.MlflowStore` is one. Used by the recorder's thread, but for the attributes."""

    owners: Path  # the folder of the locks that tell which process lives
    outbox: Path  # the folder of what could not be delivered
    run_ids: dict[str, str]  # by ref
    when_open: dict[str, Callable[[str], None]]  # by ref; called with the run's id

    def deliver(self, record: Record) -> None:
        """Write one record. Raises Unreachable or Refused."""
        ...

    def prepare(self) -> None:
        """What is due before the first record. Raises Unreachable."""
        ...

    def url(self, run_id: str) -> str:
        """The page of a run."""
        ...


class Session:
    """A store and the thread that writes to it."""

    def __init__(self, store: TrackingStore) -> None:
        self.store = store
        self.recorder = Recorder(store.deliver, store.prepare)

    def tags(self) -> dict[str, str]:
        """Who runs this, and the lock that tells whether it still does."""
        try:
            return {"owner": owner.claim(self.store.owners), **provenance.user_tags()}
        except OSError as error:
            log.warning("A crash of this process would leave its MLflow runs RUNNING: no lock in %s: %s", self.store.owners, error)
            return provenance.user_tags()

    def close(self, timeout_s: float) -> None:
        """Wait for MLflow a last time, and leave what it has not taken in the outbox."""
        left = self.recorder.close(timeout_s)
        if not left:
            return
        try:
            path = store_undelivered(self.store.outbox, left)
        except OSError as error:
            log.warning("MLflow could not be reached, and its %d records could not be kept: %s", len(left), error)
        else:
            log.warning("MLflow could not be reached: %d records are in %s and are sent by the next run.", len(left), path)


class PipelineRun:
    """The MLflow run of a flow run. Without a session, as in a plan, there is none and every method does nothing."""

    def __init__(self, session: Session | None, name: str, outer: PipelineRun | None = None) -> None:
        flow_run = provenance.flow_run()
        self.session = session
        self.pipeline = name
        self.name = flow_run.name if flow_run and outer is None else name
        self.ref = run_ref(flow_run.id if flow_run else uuid.uuid4().hex, "pipeline", name, outer.ref if outer else "")
        self.tables: list[str] = []  # keys of those that were shown
        self._outer = outer
        self._stages: dict[str, StageRun] = {}

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow; None until MLflow has answered."""
        return self.session.store.run_ids.get(self.ref) if self.session else None

    @property
    def url(self) -> str | None:
        """The run's page; None until MLflow has answered."""
        return self.session.store.url(self.run_id) if self.session and self.run_id else None

    def open(self, params: Params, tags: Mapping[str, str]) -> None:
        """Begin the run, or go on with that of an earlier attempt; link to it from Prefect once it has an id."""
        assert self.session is not None
        context = contextvars.copy_context()  # the recorder's thread is in no flow run
        self.session.store.when_open[self.ref] = lambda run_id: context.run(_link_from_prefect, self, run_id)
        known = {"kind": "pipeline", "pipeline": self.pipeline, **self.session.tags(), **provenance.code_tags(), **provenance.flow_tags()}
        parent = self._outer.ref if self._outer else None
        fixed = provenance.config_params(params)
        self.session.recorder.put(
            OpenRun(ref=self.ref, name=self.name, parent=parent, started_ms=now_ms(), tags={**known, **tags}, params=fixed)
        )

    def link(self, path: str, key: str, words: str) -> None:
        """Show a link to a file of the run on the page of the Prefect flow run; nothing as long as MLflow has not answered."""
        if self.url is not None and provenance.flow_run() is not None:
            _link_in_prefect(f"{self.url}/artifacts/{path}", key, words)

    def open_stage(self, label: str, stage: str, key: str, params: Params, inputs: Mapping[str, Artifact]) -> StageRun:
        """The child run of a stage; that of an earlier attempt at the same key goes on."""
        assert self.session is not None
        run = StageRun(self.session, run_ref(self.ref, "stage", label, key), label, on_end=self._stages.pop)
        self._stages[run.ref] = run
        run.open(self.ref, stage, key, params, inputs)
        return run

    def table(self, rows: list[dict[str, Any]], markdown: str, key: str) -> None:
        """Show rows as a table, in the MLflow run and in Prefect, and the same as Markdown."""
        if self.session is None:
            return
        self.tables.append(key)
        columns = list(dict.fromkeys(name for row in rows for name in row))
        split = {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}
        self.session.recorder.put(
            AddText(ref=self.ref, path=f"{key}.json", text=json.dumps(split, indent=1), table=True),
            AddText(ref=self.ref, path=f"{key}.md", text=markdown),
        )
        _show_in_prefect(markdown, key, rows)

    def file(self, text: str, path: str) -> None:
        """Keep a file with the MLflow run."""
        if self.session is not None:
            self.session.recorder.put(AddText(ref=self.ref, path=path, text=text))

    def policy(self, name: str, tags: Mapping[str, str], metrics: Mapping[str, float], inputs: Mapping[str, Artifact]) -> None:
        """A child run that says of one policy what the comparison says of it, so that `search_runs` and the compare view line them up."""
        if self.session is None:
            return
        ref, now = run_ref(self.ref, "policy", name), now_ms()
        known = {"kind": "policy", **self.session.tags(), **provenance.code_tags(), **tags}
        references = [reference_of(label, part) for label, part in inputs.items()]
        self.session.recorder.put(
            OpenRun(ref=ref, name=name, parent=self.ref, started_ms=now, tags=known, params={}, inputs=references),
            AddPoints(ref=ref, points=[Point(metric, value, 0, now) for metric, value in metrics.items()]),
            CloseRun(ref=ref, status="FINISHED", ended_ms=now_ms(), tags={}),
        )

    def page(self, markdown: str, key: str) -> None:
        """Show a text, in the MLflow run and in Prefect."""
        if self.session is None:
            return
        self.session.recorder.put(AddText(ref=self.ref, path=f"{key}.md", text=markdown))
        _show_in_prefect(markdown, key)

    def end(self, status: Status) -> None:
        """End the run and the stages in it that have not said how they ended."""
        assert self.session is not None
        for stage in list(self._stages.values()):
            stage.end("KILLED" if status == "KILLED" else "FAILED", {})
        self.session.recorder.put(CloseRun(ref=self.ref, status=status, ended_ms=now_ms(), tags={}))


class StageRun:
    """The MLflow run of one stage. Ends with one call of `finish` or `fail`."""

    def __init__(self, session: Session, ref: str, label: str, on_end: Callable[[str], object]) -> None:
        self.session = session
        self.ref = ref
        self.label = label
        self._on_end: Callable[[str], object] | None = on_end

    def open(self, parent: str | None, stage: str, key: str, params: Params, inputs: Mapping[str, Artifact]) -> None:
        """Begin the run, or go on with that of an earlier attempt."""
        tags = {"kind": "stage", "stage": stage, "stage_label": self.label, "stage_key": key, **self.session.tags()}
        tags |= {**provenance.code_tags(), **provenance.task_tags(), **{f"input.{name}": part.digest for name, part in inputs.items()}}
        references = [reference_of(name, part) for name, part in inputs.items()]
        fixed = provenance.config_params(params)
        self.session.recorder.put(
            OpenRun(ref=self.ref, name=self.label, parent=parent, started_ms=now_ms(), tags=tags, params=fixed, inputs=references)
        )

    def follow(self, journal: Path) -> None:
        """Forward the metrics in a journal as they appear. It need not exist yet, and may be rewound when the stage resumes."""
        self.session.recorder.follow(self.ref, journal)

    def finish(self, artifact: Artifact, outcome: str, journal: Path | None = None, folder: Path | None = None) -> None:
        """The stage has its artifact.

        outcome: "computed", "resumed" or "hit".
        journal: where the journal lies now, if it was moved since `follow`.
        folder: the artifact's files; the small ones that a person reads are copied into the run.
        """
        tags = {
            "outcome": outcome,
            "cached": str(outcome == "hit").lower(),
            "artifact_kind": artifact.kind,
            "artifact_digest": artifact.digest,
            "artifact_uri": _location(artifact.digest),
            "artifact_size_bytes": str(artifact.size_bytes),
            "artifact_meta": json.dumps(artifact.meta, sort_keys=True, default=str)[: provenance.LONGEST_VALUE],
        }
        output = reference_of(self.label, artifact) if is_model(artifact.kind) else None
        self.end("FINISHED", tags, journal, output, _readable_files(artifact.kind, folder))

    def fail(self, error: BaseException, status: Status | None = None) -> None:
        """The stage has no artifact. Without a status the exception tells it, see `status_of`."""
        text = f"{type(error).__name__}: {error}"[: provenance.LONGEST_VALUE]
        self.end(status or status_of(error), {"outcome": "failed", "error": text})

    def end(
        self,
        status: Status,
        tags: dict[str, str],
        journal: Path | None = None,
        output: Reference | None = None,
        files: Sequence[Path] = (),
    ) -> None:
        """End the run after the last of its metrics. Only the first call counts."""
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        self.session.recorder.unfollow(self.ref, journal)
        self.session.recorder.put(CloseRun(ref=self.ref, status=status, ended_ms=now_ms(), tags=tags, output=output, files=list(files)))
        on_end(self.ref)


def status_of(error: BaseException) -> Status:
    """The status of a run that ends with this exception: KILLED if someone stopped it, SCHEDULED if it is suspended, else FAILED."""
    kinds = {kind.__name__ for kind in type(error).__mro__}  # by name: Prefect is not imported for this
    if "Pause" in kinds:
        return "SCHEDULED"
    return "KILLED" if not isinstance(error, Exception) or "CancelledRun" in kinds else "FAILED"


def run_ref(*parts: object) -> str:
    return hashlib.sha256("\0".join(str(part) for part in parts).encode()).hexdigest()[:32]


def is_model(kind: str) -> bool:
    """Whether artifacts of this kind are models, as opposed to data."""
    return kind == "policy" or kind.endswith("model")


def _location(digest: str) -> str:
    return (home() / "store" / "objects" / digest[:2] / digest).as_uri()


def reference_of(name: str, artifact: Artifact) -> Reference:
    """An artifact as the tracking store sees it."""
    return Reference(name=name, kind=artifact.kind, digest=artifact.digest, location=_location(artifact.digest), meta=dict(artifact.meta))


def _readable_files(kind: str, folder: Path | None) -> list[Path]:
    """Reports of an artifact; of a model only its report, the other small files being its settings."""
    if folder is None:
        return []
    patterns = ["report.json"] if is_model(kind) else ["*.json", "*.html", "*.md", "*.csv"]
    found = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return [path for path in found if path.stat().st_size <= LARGEST_FILE_BYTES]


# Prefect's side


def _link_from_prefect(run: PipelineRun, run_id: str) -> None:
    flow_run = provenance.flow_run()
    if flow_run is None:
        return
    from prefect.artifacts import create_link_artifact
    from prefect.client.orchestration import get_client

    text = f"[Metrics, parameters and models]({run.url}) of this flow run. Without a tracking server, `posttrain ui` serves the page."
    create_link_artifact(link=str(run.url), link_text=f"MLflow: {run.name}", key="mlflow-run", description=text)
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(flow_run.id, {"mlflow.run_id": run_id})


def _link_in_prefect(url: str, key: str, words: str) -> None:
    from prefect.artifacts import create_link_artifact

    try:
        create_link_artifact(link=url, link_text=words, key=key, description=f"[{words}]({url})")
    except Exception as error:  # a link is not worth a finished run
        log.warning("%r is not linked from Prefect: %s", key, error)


def _show_in_prefect(markdown: str, key: str, rows: list[dict[str, Any]] | None = None) -> None:
    """A page of Markdown; where there are rows, a table of them too, of which the page is the text."""
    if provenance.flow_run() is None:
        return
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    slug = key.lower().replace("_", "-")
    try:
        if rows is not None:
            create_table_artifact(table=rows, key=slug)
        create_markdown_artifact(markdown=markdown, key=slug if rows is None else f"{slug}-text")
    except Exception as error:  # an artifact page is not worth a finished run
        log.warning("%r is not shown in Prefect: %s", key, error)
