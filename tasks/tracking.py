"""MLflow: one run for a flow run, one child run for each of its stages. The only module that imports mlflow.

    with pipeline("rlhf", params=config, tags={"recipe": "quickstart"}) as run:
        ...                                     # stages find the pipeline by themselves
        run.table(rows, markdown, key="comparison")

No function here waits for MLflow or raises because of it: `tasks.recorder` delivers in the background, and the journal of a stage, not
MLflow, is where its metrics are safe. Runs are always named by id: MLflow's own "active run" is one per thread and leaves strays.
"""

from __future__ import annotations

import contextlib
import contextvars
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from tasks import owner, provenance, registry, watch
from tasks.credentials import explained, without_credentials
from tasks.home import home
from tasks.locks import file_lock
from tasks.plan import current_plan
from tasks.recorder import AddPoints, AddText, CloseRun, OpenRun, Record, Reference, Refused, Status, Unreachable, undelivered
from tasks.store import Artifact
from tasks.telling import told
from tasks.tracked import Params, PipelineRun, Session, StageRun, is_model, run_ref, status_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

DELIVER_AT_END_S = 30.0  # how long a flow that is done waits for MLflow to take its last records
DELIVER_WHEN_KILLED_S = 5.0
TRIES_WHILE_MLFLOW_ANSWERS = 5
POINTS_A_REQUEST = 500
# Set where the user has not set them: a quiet terminal, and short waits, since the recorder tries again by itself.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
}
# MLflow's answers that a second try does not change.
FINAL_ERRORS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "INVALID_STATE", "BAD_REQUEST"}

# Part of the refs of runs outside of any Prefect flow run: a retry in the same process finds its run, another process makes its own.
_PROCESS = uuid.uuid4().hex
_current: contextvars.ContextVar[PipelineRun | None] = contextvars.ContextVar("pipeline", default=None)


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or the SQLite store in the output folder."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"


def ui_url() -> str:
    """Where MLflow's pages are: the tracking server, or what `posttrain ui` serves (POSTTRAIN_MLFLOW_URL if not at the usual address)."""
    uri = tracking_uri()
    here = os.environ.get("POSTTRAIN_MLFLOW_URL", "http://127.0.0.1:5000")
    return without_credentials(uri).rstrip("/") if uri.startswith("http") else here


# What flows call


@contextlib.contextmanager
def pipeline(name: str, params: Params, tags: Mapping[str, str] | None = None) -> Iterator[PipelineRun]:
    """The MLflow run of a flow run; the stages called inside become its children.

    Its name is that of the Prefect flow run, if there is one, and a retry of that goes on in the same MLflow run. Inside another pipeline
    it becomes a child of that one. Leaving the block waits until MLflow has everything, but not for long: what is left then, the next
    pipeline on this machine sends.
    """
    if current_plan() is not None:  # nothing is computed, so there is nothing to show
        yield PipelineRun(None, name)
        return
    watch.begin()
    outer = _current.get()
    session = outer.session if outer and outer.session else _new_session()
    run = PipelineRun(session, name, outer)
    run.open(params, tags or {})
    token = _current.set(run)
    status: Status = "FINISHED"
    try:
        # A run that a worker or the Prefect UI started is recorded here, one of the command line already is: gc spares what runs made.
        recording = registry.recording(provenance.deployment_name() or name, params, getattr(params, "seed", None))
        with recording, told(run):
            yield run
    except BaseException as error:
        status = status_of(error)
        raise
    finally:
        _current.reset(token)
        run.end(status)
        if outer is None:
            session.close(DELIVER_WHEN_KILLED_S if status == "KILLED" else DELIVER_AT_END_S)


def current_pipeline() -> PipelineRun | None:
    """The pipeline this code is called in, also from a thread of a Prefect task runner."""
    return _current.get()


def sweep() -> list[str]:
    """Mark runs that say RUNNING although their process is gone as KILLED, and name them. A pipeline does this at its start.

    Where MLflow cannot be reached it says so and leaves them to the next time.
    """
    _load_mlflow(tracking_uri())
    try:
        return _new_store().sweep()
    except (Unreachable, Refused) as error:
        log.warning("Runs of killed processes were not looked for: MLflow cannot be reached. %s", error)
        return []


def connected() -> MlflowStore:
    """The tracking store, for what cannot be left to the recorder: its `ask` waits for MLflow, and says so when it is away."""
    _load_mlflow(tracking_uri())
    return _new_store()


# What tasks/stage.py calls


def open_stage(label: str, stage: str, key: str, params: Params, inputs: Mapping[str, Artifact]) -> StageRun:
    """The child run of a stage in the current pipeline; a run of its own where there is none.

    label: what tells it from other uses of the same stage, e.g. "evaluate[dpo]"; also the run's name.
    A retry calls this again with the same label and key and goes on in the same run.
    """
    outer = current_pipeline()
    if outer is not None:
        return outer.open_stage(label, stage, key, params, inputs)
    session = _new_session()
    flow_run = provenance.flow_run()
    ref = run_ref(flow_run.id if flow_run else _PROCESS, "stage", label, key)
    run = StageRun(session, ref, label, on_end=lambda ref: session.close(DELIVER_AT_END_S))
    run.open(None, stage, key, params, inputs)
    return run


def cached(
    label: str,
    stage: str,
    key: str,
    artifact: Artifact,
    params: Params,
    inputs: Mapping[str, Artifact],
    history: Path,
    folder: Path | None = None,
) -> None:
    """The child run of a stage whose artifact was in the store: marked, and with the whole history of its metrics, so that runs compare.

    history: the journal kept from the computation; without it the run has no metrics.
    """
    run = open_stage(label, stage, key, params, inputs)
    run.finish(artifact, "hit", journal=history, folder=folder)


# MLflow's side


def _load_mlflow(uri: str) -> None:
    """Import mlflow, quietly, and in the caller's thread: two threads that import large packages at once can see half of one."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    if uri.startswith("sqlite"):
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    # Tells of the tables it makes, and prints a traceback whenever the database is locked; the recorder says that in a line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)


def _new_session() -> Session:
    _load_mlflow(tracking_uri())
    return Session(_new_store())


def _new_store() -> MlflowStore:
    return MlflowStore(tracking_uri(), os.environ.get("MLFLOW_EXPERIMENT_NAME", "posttrain"), home() / "mlflow")


class MlflowStore:
    """Writes records to MLflow; every write may be repeated without harm. Used by one thread.

    folder: on this machine; holds the SQLite store, its artifacts, the outbox and the owners' locks.
    """

    def __init__(self, uri: str, experiment: str, folder: Path) -> None:
        self.uri = uri
        self.experiment = experiment
        self.folder = folder
        self.owners = folder / "owners" / run_ref(uri, experiment)[:8]  # of this store: the dead of another one are not ours to forget
        self.outbox = folder / "outbox" / run_ref(uri, experiment)[:8]
        self.run_ids: dict[str, str] = {}
        self.when_open: dict[str, Callable[[str], None]] = {}
        self._steps: dict[str, dict[str, set[int]]] = {}
        self._models: dict[str, str] = {}
        self._experiment_id = ""
        self._connection: MlflowClient | None = None
        self._tries = 0

    def url(self, run_id: str) -> str:
        """The page of a run."""
        return f"{ui_url()}/#/experiments/{self._experiment_id}/runs/{run_id}"

    def ask(self, question: Callable[[MlflowClient], Answer]) -> Answer:
        """What MLflow answers, at once. Raises Unreachable or Refused; the latter's cause has MLflow's error code."""
        with self._judged():
            return question(self._client())

    def logged_model(self, model: Reference) -> str:
        """Id of an artifact's LoggedModel. Raises Unreachable or Refused."""
        with self._judged():
            return self._model_id(model, source_run_id=None)

    def deliver(self, record: Record) -> None:
        """Write one record. Raises Unreachable or Refused."""
        with self._judged():
            if isinstance(record, OpenRun):
                self._open(record)
            elif isinstance(record, AddPoints):
                self._add_points(record)
            elif isinstance(record, AddText):
                self._add_text(record)
            else:
                self._close(record)

    def prepare(self) -> None:
        """What is due before the first record: runs of dead processes, and the outbox. Raises Unreachable."""
        self.sweep()
        for path in sorted(self.outbox.glob("*.jsonl")):
            try:
                self._deliver_outbox(path)
            except ValidationError as error:
                log.warning("%s was written by another version and is set aside: %s", path, error)
                path.rename(path.with_suffix(".unreadable"))

    def _deliver_outbox(self, path: Path) -> None:
        with undelivered(path) as records:
            for record in records:
                try:
                    self.deliver(record)
                except Refused as error:
                    log.warning("Not recorded in MLflow: %s", error)

    def sweep(self) -> list[str]:
        """Close the runs of dead processes, and name them. Raises Unreachable."""
        dead = set(owner.dead_owners(self.owners))
        if not dead:
            return []
        swept = []
        with self._judged():
            for run in self._search("attributes.status = 'RUNNING'"):
                if run.data.tags.get("owner") in dead:
                    self._client().set_tag(run.info.run_id, "error", "its process is gone")
                    self._client().set_terminated(run.info.run_id, "KILLED")
                    swept.append(run.info.run_name or run.info.run_id)
        owner.forget(self.owners, sorted(dead))
        return swept

    # Runs

    def _open(self, record: OpenRun) -> None:
        run = self._find(record.ref)
        tags = {**record.tags, "ref": record.ref}
        if record.parent is not None:
            tags["mlflow.parentRunId"] = self._run_id(record.parent)
        if run is None:
            self._steps[record.ref] = {}
            run = self._client().create_run(self._experiment(), start_time=record.started_ms, tags=tags, run_name=record.name)
        else:
            self._client().update_run(run.info.run_id, status="RUNNING")
            self._log(run.info.run_id, tags=tags)
        run_id = self.run_ids[record.ref] = run.info.run_id
        self._log(run_id, params={name: value for name, value in record.params.items() if name not in run.data.params})
        self._add_inputs(run_id, record.inputs)
        self._tell_opened(record.ref, run_id)

    def _tell_opened(self, ref: str, run_id: str) -> None:
        tell = self.when_open.pop(ref, None)
        if tell is None:
            return
        try:
            tell(run_id)
        except Exception as error:  # Prefect's side of a link is not worth a record
            log.warning("The MLflow run is not linked from Prefect: %s", error)

    def _close(self, record: CloseRun) -> None:
        run_id = self._run_id(record.ref)
        tags = dict(record.tags)
        if tags.get("cached") == "true":
            tags |= self._source_of(tags["artifact_digest"])
        self._log(run_id, tags=tags)
        if record.output is not None:
            self._add_output(run_id, record.output)
        for path in record.files:
            if path.exists():
                self._client().log_artifact(run_id, str(path))
        self._client().set_terminated(run_id, record.status, end_time=record.ended_ms)
        self._steps.pop(record.ref, None)

    def _source_of(self, digest: str) -> dict[str, str]:
        """The run that computed an artifact, if this store has it."""
        found = self._search(f"tags.artifact_digest = '{digest}' and tags.cached = 'false'", limit=1)
        return {"cached_from": found[0].info.run_id} if found else {}

    def _find(self, ref: str) -> Run | None:
        found = self._search(f"tags.ref = '{ref}'", limit=1)
        return found[0] if found else None

    def _run_id(self, ref: str) -> str:
        if ref not in self.run_ids:
            run = self._find(ref)
            if run is None:
                raise Refused(f"its run {ref} is not in MLflow")
            self.run_ids[ref] = run.info.run_id
        return self.run_ids[ref]

    def _search(self, condition: str, limit: int | None = None) -> list[Run]:
        runs, token = [], None
        while True:
            page = self._client().search_runs([self._experiment()], condition, max_results=limit or 1000, page_token=token)
            runs += page
            token = page.token
            if not token or limit is not None:
                return runs

    # What is in a run

    def _add_points(self, record: AddPoints) -> None:
        from mlflow.entities import Metric

        run_id = self._run_id(record.ref)
        fresh: dict[tuple[str, int], Metric] = {}
        for point in record.points:
            name = provenance.clean_name(point.name)
            if point.step not in self._known_steps(record.ref, run_id, name):
                fresh.setdefault((name, point.step), Metric(name, point.value, point.time_ms, point.step))
        keys = list(fresh)
        for start in range(0, len(keys), POINTS_A_REQUEST):
            part = keys[start : start + POINTS_A_REQUEST]
            self._client().log_batch(run_id, metrics=[fresh[key] for key in part])
            for name, step in part:
                self._steps[record.ref][name].add(step)

    def _known_steps(self, ref: str, run_id: str, name: str) -> set[int]:
        """The steps at which a run has the metric. Asked for once, and only of a run that an earlier attempt has written to."""
        if ref not in self._steps:
            names = self._client().get_run(run_id).data.metrics
            self._steps[ref] = {name: {point.step for point in self._client().get_metric_history(run_id, name)} for name in names}
        return self._steps[ref].setdefault(name, set())

    def _add_text(self, record: AddText) -> None:
        run_id = self._run_id(record.ref)
        self._client().log_text(run_id, record.text, record.path)
        if record.table:
            tables = json.loads(self._client().get_run(run_id).data.tags.get("mlflow.loggedArtifacts", "[]"))
            entry = {"path": record.path, "type": "table"}
            if entry not in tables:
                self._client().set_tag(run_id, "mlflow.loggedArtifacts", json.dumps([*tables, entry]))

    def _log(self, run_id: str, tags: Mapping[str, str] | None = None, params: Mapping[str, str] | None = None) -> None:
        from mlflow.entities import Param, RunTag

        entries: list[Any] = [RunTag(name, value) for name, value in (tags or {}).items()]
        entries += [Param(name, value) for name, value in (params or {}).items()]
        for start in range(0, len(entries), 100):
            part = entries[start : start + 100]
            self._client().log_batch(
                run_id,
                tags=[entry for entry in part if isinstance(entry, RunTag)],
                params=[entry for entry in part if isinstance(entry, Param)],
            )

    # Data and models: referred to, never copied

    def _add_inputs(self, run_id: str, inputs: list[Reference]) -> None:
        from mlflow.entities import LoggedModelInput

        datasets = [_dataset_input(part) for part in inputs if not is_model(part.kind)]
        models = [LoggedModelInput(model_id=self._model_id(part, source_run_id=None)) for part in inputs if is_model(part.kind)]
        if datasets or models:
            self._client().log_inputs(run_id, datasets=datasets, models=models)

    def _add_output(self, run_id: str, output: Reference) -> None:
        from mlflow.entities import LoggedModelOutput

        model_id = self._model_id(output, source_run_id=run_id)
        outputs = self._client().get_run(run_id).outputs
        if outputs is None or model_id not in {part.model_id for part in outputs.model_outputs}:
            self._client().log_outputs(run_id, [LoggedModelOutput(model_id, step=0)])

    def _model_id(self, model: Reference, source_run_id: str | None) -> str:
        """The LoggedModel of an artifact: one for each digest, made when it is first seen. Its files stay in the artifact store."""
        if model.digest in self._models:
            return self._models[model.digest]
        client, experiment = self._client(), self._experiment()
        found = client.search_logged_models([experiment], filter_string=f"tags.artifact_digest = '{model.digest}'", max_results=1)
        if found:
            model_id = found[0].model_id
        else:
            tags = {"artifact_digest": model.digest, "artifact_uri": model.location, "mlflow.model.isExternal": "true"}
            params = {"digest": model.digest, **provenance.config_params(model.meta)}
            name = provenance.model_name(model.name)
            made = client.create_logged_model(
                experiment, name=name, source_run_id=source_run_id, tags=tags, params=params, model_type=model.kind
            )
            model_id = client.finalize_logged_model(made.model_id, "READY").model_id
        self._models[model.digest] = model_id
        return model_id

    # The connection

    def _client(self) -> MlflowClient:
        if self._connection is None:
            from mlflow import MlflowClient

            if self.uri.startswith("sqlite:///"):
                Path(self.uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
            with file_lock(self.folder / "connect.lock"):  # two processes that make the tables at once disturb each other
                self._connection = MlflowClient(self.uri)
        return self._connection

    def _experiment(self) -> str:
        if not self._experiment_id:
            client = self._client()
            found = client.get_experiment_by_name(self.experiment) or self._create_experiment()
            if found.lifecycle_stage == "deleted":
                client.restore_experiment(found.experiment_id)
            self._experiment_id = found.experiment_id
        return self._experiment_id

    def _create_experiment(self) -> Experiment:
        from mlflow.exceptions import MlflowException

        place = (self.folder / "artifacts").as_uri() if self.uri.startswith("sqlite") else None  # a server has its own place
        try:
            self._client().create_experiment(self.experiment, artifact_location=place)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another run was faster
                raise
        found = self._client().get_experiment_by_name(self.experiment)
        if found is None:
            raise Unreachable(f"the experiment {self.experiment!r} was made and is not there")
        return found

    @contextlib.contextmanager
    def _judged(self) -> Iterator[None]:
        """Turn the client's exceptions into Unreachable (try again) or Refused (never mind); a bug stays what it is."""
        try:
            yield
        except (Refused, Unreachable):
            raise
        except Exception as error:
            code = getattr(error, "error_code", None)
            text = explained(code, str(error).strip().split("\n")[0][:300])
            if code in FINAL_ERRORS:
                raise Refused(text) from error
            if code is None and not isinstance(error, OSError) and not type(error).__module__.startswith("sqlalchemy"):
                raise
            self._tries += 1
            # An internal error may pass, or may be what this one record does to the server for ever: then it must not block the others.
            if code == "TEMPORARILY_UNAVAILABLE" or self._tries < TRIES_WHILE_MLFLOW_ANSWERS or not self._answers():
                raise Unreachable(text) from error
            raise Refused(text) from error
        self._tries = 0

    def _answers(self) -> bool:
        try:
            return self._client().get_experiment_by_name(self.experiment) is not None
        except Exception:
            return False


def _dataset_input(part: Reference) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    # MLflow takes digests of at most 36 characters; the whole one is in the tags.
    dataset = Dataset(
        name=part.name,
        digest=part.digest[:32],
        source_type="local",
        source=json.dumps({"uri": part.location}),
        profile=json.dumps({"digest": part.digest, "kind": part.kind, **part.meta}, default=str),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", part.name), InputTag("artifact_digest", part.digest)])
