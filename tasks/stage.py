"""`@stage`: a function over artifacts as a Prefect task, cached by meaning, computed once, retried and resumed in its own process.

@stage(kind="policy", runs="models.training.sft:train")
def sft(config: SFTConfig, base: Artifact, data: Artifact, *, seed: int, context: StageContext) -> Artifact:
    return context.run(config, seed, base=base, data=data)

policy = sft(config, base, data, seed=0)                        # in a flow
report = evaluate.named("dpo")(config, policy, data, seed=0)    # shown as evaluate[dpo]; the label is not in the key
with planning() as plan: flow.fn(config)                        # computes nothing: plan.entries says what would happen
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prefect import Task
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from pydantic import BaseModel

from models.memory import require_free, snapshot_bytes, stored_bytes
from models.ranks import ranks_here
from models.run import Run, write_atomic
from models.spending import FILE as COST_FILE
from models.spending import accounted
from models.worker import call_entry, encode_input, load_entry
from models.zygote import GRACE_S
from tasks import claims, outlook, tracking
from tasks.cache import NoRecord, recorded, stage_policy
from tasks.device import device_slot, visible_gpus
from tasks.home import home
from tasks.key import PROJECT, Closure, Project, closure, digest_key, explain_miss, key_document, save_document
from tasks.locks import try_lock
from tasks.plan import Pending, PlanEntry, current_plan, planning
from tasks.process import Limits, Progress, Result, StageOOM, StageProcessError, run_process, tell
from tasks.progress import Follower, following
from tasks.ray_workers import ray_workers
from tasks.registry import Outcome, current_run, record_stage
from tasks.store import Artifact, Store
from tasks.story import StageStory, run_logger
from tasks.telling import tell_end
from tasks.tracked import is_model

__all__ = ["Pending", "Stage", "StageContext", "planning", "stage"]

SPARE_BYTES = 64 * 2**20


@dataclass
class _Call:
    """One call of a stage, over all its attempts."""

    stage: Stage
    label: str
    store: Store
    arguments: dict[str, Any]
    key: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)
    code: Closure | None = None
    ooms: int = 0
    outcome: Outcome = "hit"
    start: float = field(default_factory=time.monotonic)
    story: StageStory = field(init=False)
    follower: Follower = field(init=False)

    @property
    def config(self) -> BaseModel:
        return self.arguments["config"]

    @property
    def seed(self) -> int | None:
        return self.arguments.get("seed")

    @property
    def inputs(self) -> dict[str, Any]:
        return {name: value for name, value in self.arguments.items() if name not in ("config", "seed")}

    @property
    def artifacts(self) -> dict[str, Artifact]:
        """Input artifacts by name; those inside a list or a dict by dotted name."""
        return {name: value for name, value in _flat_inputs(self.inputs) if isinstance(value, Artifact)}

    @property
    def params(self) -> dict[str, Any]:
        return self.config.model_dump(mode="json") | ({} if self.seed is None else {"seed": self.seed})

    @property
    def checkpoints(self) -> Path:
        return self.store.root / "checkpoints" / self.key

    @property
    def history(self) -> Path:
        return self.store.root / "history" / f"{self.key}.jsonl"

    @property
    def cost(self) -> Path:
        return self.store.root / "costs" / f"{self.key}.json"

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start


_call: ContextVar[_Call | None] = ContextVar("stage_call", default=None)


def _flat_inputs(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat_inputs(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            yield from _flat_inputs({str(i): item for i, item in enumerate(value)}, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _current_call() -> _Call:
    call = _call.get()
    assert call is not None, "a stage's task runs only inside a call of its stage"
    return call


def _should_retry(task: Task[..., Any], task_run: TaskRun, state: State[Any]) -> bool:
    """Prefect asks this after a failure, and takes only a plain function. Infrastructure faults yes, mistakes no, memory once."""
    error = state.data
    if isinstance(error, StageOOM):
        return _current_call().ooms < 2
    if isinstance(error, StageProcessError):
        return error.retryable
    return isinstance(error, OSError) and not isinstance(error, FileNotFoundError | PermissionError)


class StageContext:
    """What the body of a stage gets as `context`."""

    def __init__(self, call: _Call) -> None:
        self.call = call
        self.store = call.store
        self.key = call.key
        self.label = call.label

    def log(self, text: str) -> None:
        """One line in the log of the run."""
        self.call.follower.spoke()
        run_logger().info("%s", text)

    def run(self, config: BaseModel, seed: int | None = None, **inputs: Any) -> Artifact:
        """Run the stage's function and store what it wrote. Inputs are artifacts, plain values, or lists or dicts of them.

        Raises:
            ValueError: the configuration or the data is wrong, or the disk is too small.
            StageProcessError: the process failed; its subclasses say how.
        """
        self._require_space()
        self.call.checkpoints.mkdir(parents=True, exist_ok=True)
        staging = self.store.new_staging()
        try:
            out = staging / "out"
            out.mkdir()
            run = self._run_inline if self.call.stage.inline else self._run_process
            result = run(config, seed, {name: self._located(value) for name, value in inputs.items()}, staging)
            self.call.outcome = "computed" if result.resumed_step is None else "resumed"
            self.call.story.resumed_step = result.resumed_step
            return self.store.put(out, self.call.stage.kind, result.meta)
        finally:
            self.store.discard(staging)

    def _require_space(self) -> None:
        space = self.call.stage.space
        inputs = self.call.artifacts
        needed = space(self.call.config, inputs) if space else 2 * sum(artifact.size_bytes for artifact in inputs.values())
        self.store.require_space(needed + self._snapshot_bytes() + SPARE_BYTES, self.label)

    @property
    def _models(self) -> list[Path]:
        """Folders of the input models; the first is the one that a training stage starts from."""
        return [self.store.folder(artifact.digest) for artifact in self.call.artifacts.values() if is_model(artifact.kind)]

    def _snapshot_bytes(self) -> int:
        return snapshot_bytes(self.call.config, stored_bytes(self._models[0])) if self._models else 0

    def _require_memory(self) -> None:
        """Called when the device is ours: before that, what another stage holds would count as taken."""
        models = self._models
        if visible_gpus() or not models or not (models[0] / "config.json").exists():
            return
        folders = [self.store.folder(artifact.digest) for artifact in self.call.artifacts.values()]
        require_free(self.label, self.call.stage.name, self.call.config, models[0], folders)

    def _located(self, value: Any) -> Any:
        if isinstance(value, Artifact):
            return self.store.path(value)
        if isinstance(value, Mapping):
            return {name: self._located(item) for name, item in value.items()}
        return [self._located(item) for item in value] if isinstance(value, list | tuple) else value

    def _run_inline(self, config: BaseModel, seed: int | None, inputs: dict[str, Any], staging: Path) -> Result:
        run = Run(staging / "out", self.call.checkpoints, self.key)
        entry = load_entry(self.call.stage.runs, list(self.call.stage.project.runnable))
        with accounted(self.call.checkpoints, own_process=False):
            meta = call_entry(entry, config, inputs, seed, run)
        run.close()
        return Result(meta, run.resumed_step)

    def _run_process(self, config: BaseModel, seed: int | None, inputs: dict[str, Any], staging: Path) -> Result:
        stage = self.call.stage
        slot = device_slot(self.store, self._say_waiting, count=self._devices) if stage.device else nullcontext({})
        self.call.story.waits_for("the device")
        with slot as device:
            self.call.story.goes_on()
            self._require_memory()
            tell(Progress(self.label, "running"))
            spec = self._spec(config, seed, inputs, staging, device)
            with ray_workers(stage.fan_out, spec, self.store.root / "locks", staging / "sharing", self.label, self.log) as own:
                return run_process(own, staging, self.label, stage.limits, self.log)

    @property
    def _devices(self) -> int:
        """On this machine, one for each rank."""
        return ranks_here(self.call.config.model_dump())

    def _say_waiting(self, what: str) -> None:
        self.log(f"{self.label} waits for {what}")
        tell(Progress(self.label, "waiting"))

    def _spec(
        self, config: BaseModel, seed: int | None, inputs: dict[str, Any], staging: Path, device: Mapping[str, str]
    ) -> dict[str, Any]:
        assert self.call.code is not None
        project = self.call.stage.project
        own = {name: value for name, value in os.environ.items() if name.startswith("POSTTRAIN_")}
        return {
            "entry": self.call.stage.runs,
            "config": config.model_dump(mode="json"),
            "inputs": {name: encode_input(value) for name, value in inputs.items()},
            "seed": seed,
            "stage_key": self.key,
            "micro_batch_scale": 0.5**self.call.ooms,
            "out": str(staging / "out"),
            "checkpoints": str(self.call.checkpoints),
            "log": str(self.store.root / "logs" / f"{self.key}.log"),
            "root": str(project.root),
            "runnable": list(project.runnable),
            "folder": str(Path.cwd()),
            "environment": {**own, **device},
            "sources": {name: [source.raw, source.meaning] for name, source in self.call.code.sources.items()},
        }


class Stage:
    """A stage: call it from a flow, without `context`. Made by `@stage`."""

    def __init__(
        self,
        function: Callable[..., Artifact],
        kind: str,
        runs: str,
        *,
        retries: int,
        retry_delays_s: list[float],
        inline: bool,
        device: bool,
        fan_out: str,
        limits: Limits,
        space: Callable[[Any, Mapping[str, Artifact]], int] | None,
        project: Project,
    ) -> None:
        functools.update_wrapper(self, function)
        self.function = function
        self.name = self.label = function.__name__
        self.kind = kind
        self.runs = runs
        self.retries = retries
        self.retry_delays_s = retry_delays_s
        self.inline = inline
        self.device = device and not inline
        self.fan_out = runs if fan_out == "chunks" else fan_out
        self.limits = limits
        self.space = space
        self.project = project
        whole = inspect.signature(function)
        self.signature = whole.replace(parameters=[p for name, p in whole.parameters.items() if name != "context"])
        # The code that this process has loaded, whatever is edited from now on. A process of its own loads what it finds then.
        self._loaded = closure(self._modules if inline else [function.__module__], project, by_name=False)
        self._tasks: dict[tuple[Path, str], Task[..., Artifact]] = {}

    @property
    def _modules(self) -> list[str]:
        return [self.function.__module__, self.runs.partition(":")[0]]

    def named(self, suffix: str) -> Stage:
        """The same stage under the label `name[suffix]`, to tell several uses in one flow apart. The key does not depend on it."""
        other = copy.copy(self)
        other.label = f"{self.name}[{suffix}]"
        return other

    def __call__(self, *args: Any, **kwargs: Any) -> Artifact:
        """The stage's artifact, from the cache or computed now. In `planning` it may be a `Pending`."""
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        call = _Call(self, self.label, Store(home() / "store"), dict(bound.arguments))
        plan = current_plan()
        if plan is not None:
            entry = self._planned(call)
            plan.entries.append(entry)
            return entry.artifact or Pending(self.name, self.label, self.kind)  # type: ignore[return-value]
        if TaskRunContext.get() is not None:
            raise RuntimeError(f"{self.label} was called inside a task: call stages from flows, or a failure outside undoes their cache")
        self._set_key(call)
        return self._perform(call)

    def _set_key(self, call: _Call) -> None:
        call.code = closure(self._modules, self.project)
        for path, loaded in self._loaded.sources.items():
            now = call.code.sources.get(path)
            if now is None or now.meaning != loaded.meaning:
                raise ValueError(f"{path} was edited after this process had loaded it: start the run again, finished stages are kept")
        call.document = key_document(self.name, self.kind, call.config, call.inputs, call.seed, call.code)
        call.key = digest_key(call.document)

    # Planning

    def _planned(self, call: _Call) -> PlanEntry:
        entry = functools.partial(PlanEntry, call.label, self.name, config=call.config, inputs=call.inputs)
        for name, value in _flat_inputs(call.inputs):
            if isinstance(value, Pending):
                return entry("miss", None, f"input {name} will be made by {value.label}")
        self._set_key(call)
        try:
            return entry("hit", call.key, "computed before", artifact=recorded(call.store, call.key))
        except NoRecord as error:
            changes = explain_miss(call.store.root / "keydocs", call.key, call.document)
            was_computed = (call.store.root / "records" / "keys" / call.key).exists()
            return entry("miss", call.key, str(error) if was_computed or not changes else "; ".join(changes))

    # Running

    def _perform(self, call: _Call) -> Artifact:
        claims.claim()
        save_document(call.store.root / "keydocs", call.key, call.document)
        record_stage(current_run(), call.label, call.key, None, "running", 0.0)
        outlook.begin(call.label)
        call.story = StageStory(call.label, self.name, functools.partial(outlook.cause_now, call.label, call.key, call.document))
        token = _call.set(call)
        try:
            with following(call.label, call.checkpoints) as call.follower:
                return self._followed(call)
        finally:
            _call.reset(token)

    def _followed(self, call: _Call) -> Artifact:
        try:
            state: Any = self._task(call.store, call.label)(**call.arguments, return_state=True)
            artifact = state.result()
        except BaseException as error:
            tell_end(call.story, call.follower, call.key, "failed", call.seconds, None, error)
            raise
        assert isinstance(artifact, Artifact)
        if call.outcome == "hit" and tracking.current_pipeline() is not None:
            folder = call.store.folder(artifact.digest)
            tracking.cached(call.label, self.name, call.key, artifact, call.params, call.artifacts, call.history, folder)
        tell_end(call.story, call.follower, call.key, call.outcome, call.seconds, artifact)
        _remove_checkpoints(call)
        return artifact

    def _task(self, store: Store, label: str) -> Task[..., Artifact]:
        made = self._tasks.get((store.root, label))
        if made is None:
            made = self._tasks[store.root, label] = Task(
                self._body(),
                name=self.name,
                task_run_name=label,
                description=inspect.getdoc(self.function),
                cache_policy=stage_policy(store, lambda: _current_call().key, _say_waiting_for_key),
                persist_result=True,
                result_serializer="json",
                result_storage=store.root / "records" / "results",
                retries=self.retries,
                retry_delay_seconds=self.retry_delays_s,
                retry_condition_fn=_should_retry,
            )
        return made

    def _body(self) -> Callable[..., Artifact]:
        @functools.wraps(self.function)
        def body(*args: Any, **kwargs: Any) -> Artifact:
            return _attempt(_current_call())  # it holds the same arguments by name

        body.__signature__ = self.signature  # type: ignore[attr-defined]
        body.__annotations__ = {name: value for name, value in self.function.__annotations__.items() if name != "context"}
        return body


def _attempt(call: _Call) -> Artifact:
    """One attempt at computing a stage, tracked. Prefect calls it after the cache was found empty, holding the key's lock."""
    call.outcome = "computed"
    call.story.attempt()
    tracked = None
    if tracking.current_pipeline() is not None:
        tracked = tracking.open_stage(call.label, call.stage.name, call.key, call.params, call.artifacts)
        tracked.follow(call.checkpoints / "journal.jsonl")
    try:
        artifact = call.stage.function(**call.arguments, context=StageContext(call))
    except BaseException as error:
        call.story.failed(error)
        call.ooms += isinstance(error, StageOOM)
        if tracked is not None:
            tracked.fail(error)
        raise
    _keep_history(call)
    if tracked is not None:
        tracked.finish(artifact, call.outcome, journal=call.history, folder=call.store.folder(artifact.digest))
    return artifact


def _keep_history(call: _Call) -> None:
    """Keep the metrics and the cost of a finished stage: a later hit shows them again."""
    for kept, now in ((call.history, call.checkpoints / "journal.jsonl"), (call.cost, call.checkpoints / COST_FILE)):
        if now.exists():
            write_atomic(kept, now.read_text(encoding="utf-8"))
        else:
            kept.unlink(missing_ok=True)


def _remove_checkpoints(call: _Call) -> None:
    """After the cache record is on disk, not before: a kill between the two must find them. Not from under another computation."""
    if not call.checkpoints.exists():
        return
    descriptor = try_lock(call.store.root / "locks" / f"key-{call.key}.lock")
    if descriptor is not None:
        shutil.rmtree(call.checkpoints, ignore_errors=True)
        os.close(descriptor)


def _say_waiting_for_key(key: str) -> None:
    call = _current_call()
    call.story.waits_for("another run to compute it")
    run_logger().info("%s is being computed by another run: waiting for it", call.label)
    tell(Progress(call.label, "waiting"))


def stage(
    kind: str,
    runs: str,
    *,
    retries: int = 2,
    retry_delays_s: list[float] | None = None,
    inline: bool = False,
    device: bool = True,
    fan_out: str = "",
    silence_s: float = 900.0,
    timeout_s: float | None = None,
    space: Callable[[Any, Mapping[str, Artifact]], int] | None = None,
    project: Project = PROJECT,
) -> Callable[[Callable[..., Artifact]], Stage]:
    """Make a stage of a function `(config, inputs..., *, seed, context) -> Artifact`.

    kind: of the artifact: policy, reward_model, dataset, preferences, report.
    runs: the function that does the work, "models.training.sft:train"; called in its own process with folders for artifacts and a Run.
    retries, retry_delays_s: of infrastructure faults.
    inline: run it in the flow's process: for work of a second or two without torch.
    device: wait for a free device first.
    fan_out: what Ray workers run beside it, where there are any (tasks/ray_workers.py): a function, or "chunks" for `runs` again, for a
        stage whose work is cut into chunks by models/chunks.py. Empty: it has no use for them.
    silence_s, timeout_s: without a sign of life (output, report, progress), or in all, after which the process counts as hung.
    space: bytes of disk that the work needs, from the config and the input artifacts by name; default twice the inputs. Snapshots that the
        configuration asks for come on top.
    """
    limits = Limits(silence_s, timeout_s, GRACE_S)
    delays = [2.0, 10.0] if retry_delays_s is None else retry_delays_s

    def make(function: Callable[..., Artifact]) -> Stage:
        return Stage(
            function,
            kind,
            runs,
            retries=retries,
            retry_delays_s=delays,
            inline=inline,
            device=device,
            fan_out=fan_out,
            limits=limits,
            space=space,
            project=project,
        )

    return make
