"""Suite entry: tasks of EleutherAI's lm-evaluation-harness, an optional extra, through this package's sampler and log-probabilities."""

import difflib
import importlib.util
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.intervals import draws_of, percentile_interval
from data.measures import Better, Measure, Suite, mean
from models.configs.lm_eval import LMEvalConfig
from models.run import Run
from models.seeds import derive_seed
from models.suites.concluding import conclude

AGGREGATE_RESAMPLES = 200  # of quantities that are no mean, such as BLEU: each resample computes it anew
_SHOWN_CHARACTERS = 4000


def measure(config: LMEvalConfig, *, policy: Path, seed: int, run: Run) -> dict[str, Any]:
    """Run the tasks and write ``suite.json``: a measure ``task/metric`` for each of their metrics.

    Metrics that are means have values by document and can be paired; the others have a bootstrap interval of their own aggregation.

    Raises:
        ValueError: lm-eval is not installed; a task is unknown, has no data, runs generated code, or needs a metric from a hub.
        ConnectionError: a task's data is on a hub that cannot be reached.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ValueError("the suite lm_eval needs the extra lm-eval, which is not there: pip install -c constraints.txt -e '.[lm-eval]'")
    os.environ["HF_EVALUATE_OFFLINE"] = "1"  # metrics of the evaluate library are code that is fetched
    from lm_eval.evaluator import evaluate

    from models.suites.lm_eval_policy import PolicyLM

    own = derive_seed(seed, "lm_eval") % 2**31
    random.seed(own)
    np.random.seed(own)
    loaded = load_tasks(config, own)
    results: Any = evaluate(
        PolicyLM(policy, config, own, run),
        loaded,
        limit=config.limit or None,
        bootstrap_iters=0,
        system_instruction=config.system_prompt or None,
        apply_chat_template=config.chat_template,
        fewshot_as_multiturn=config.chat_template and config.few_shot_as_turns,
        confirm_run_unsafe_code=False,
    )
    assert results is not None
    suite = suite_of(config, loaded["tasks"], results["samples"], own)
    return conclude(suite, run) | {"measures": len(suite.measures)}


def load_tasks(config: LMEvalConfig, seed: int) -> dict[str, Any]:
    """The tasks, ready to be asked."""
    from lm_eval.tasks import TaskManager

    folder = config.include_path or None
    if folder and not Path(folder).is_dir():
        raise ValueError(f"include_path {folder!r} is no folder: name the one that holds the task files")
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if folder and not set(config.tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folder)
    for name in config.tasks:
        _check_known(name, manager)
    try:
        loaded = manager.load(config.tasks)
    except FileNotFoundError as error:
        raise ValueError(f"the data of {', '.join(config.tasks)} is not there: {error}") from error
    except (ConnectionError, TimeoutError, OSError) as error:
        raise ConnectionError(
            f"the data of {', '.join(config.tasks)} cannot be loaded ({type(error).__name__}: {error}). Without the hub: a task file of "
            "your own in include_path, with dataset_path: json and dataset_kwargs: {data_files: ...}"
        ) from error
    for name, task in loaded["tasks"].items():
        _check_safe(name, task)
        if config.few_shot >= 0:
            task.set_config(key="num_fewshot", value=config.few_shot)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    return dict(loaded)


def _check_known(name: str, manager: Any) -> None:
    entry = manager.task_index.get(name)
    if entry is None:
        near = difflib.get_close_matches(name, manager.all_tasks, 3)
        raise ValueError(f"lm-eval knows no task {name!r}{'; near are ' + ', '.join(near) if near else ''}: see `lm_eval ls tasks`")
    if (entry.cfg or {}).get("unsafe_code"):
        raise ValueError(f"the task {name} runs code that the policy writes, which is never done here: take another task")


def _check_safe(name: str, task: Any) -> None:
    """What only the loaded task tells: members of groups, and metrics."""
    if getattr(task, "UNSAFE_CODE", False):
        raise ValueError(f"the task {name} runs code that the policy writes, which is never done here: take another task")
    functions: Mapping[str, Any] = getattr(task, "_metric_fn_list", {})
    missing = [metric for metric, function in functions.items() if function is None]
    if missing and task.get_config("process_results") is None:
        raise ValueError(f"the task {name} uses the metrics {missing}, which are code on a hub and not part of lm-eval: take another task")


def suite_of(config: LMEvalConfig, tasks: Mapping[str, Any], samples: Mapping[str, Sequence[Mapping[str, Any]]], seed: int) -> Suite:
    """The measures of all tasks, and what was asked and answered."""
    measures: list[Measure] = []
    notes = [f"tasks of lm-eval: {', '.join(config.tasks)}"]
    for name, rows in samples.items():
        for key, values in _columns(rows).items():
            made = _measure(name, key, values, tasks[name], config.resamples, seed)
            measures += [made] if made else []
            notes += [] if made else [f"{name}/{key[0]} is no number and left out"]
    items = [_item(name, row) for name, rows in samples.items() for row in rows]
    return Suite(config.name, "lm_eval", measures, items, notes)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, Any]]:
    """Values by (metric, filter) and document."""
    columns: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        for metric in row["metrics"]:
            columns.setdefault((metric, row["filter"]), {})[str(row["doc_id"])] = row[metric]
    return columns


def _measure(task: str, key: tuple[str, str], values: Mapping[str, Any], owner: Any, resamples: int, seed: int) -> Measure | None:
    metric, kept = key
    name = "/".join([task, metric, *([] if kept == "none" else [f"filter={kept}"])])
    higher = owner.higher_is_better().get(metric)
    better: Better = "neither" if higher is None else "higher" if higher else "lower"
    aggregate = owner.aggregation().get(metric)
    if aggregate is None:
        return None
    if getattr(aggregate, "__name__", "") in ("mean", "nanmean") and all(_is_finite(value) for value in values.values()):
        named = {"/".join((task, document)): float(value) for document, value in values.items()}
        return mean(name, named, seed=seed, resamples=resamples, better=better)
    return _aggregated(name, list(values.values()), aggregate, seed, better)


def _aggregated(name: str, values: Sequence[Any], aggregate: Callable[[Sequence[Any]], Any], seed: int, better: Better) -> Measure | None:
    """A quantity that is no mean over documents: its own aggregation, of the documents and of bootstrap resamples of them."""
    whole = aggregate(values)
    if not _is_finite(whole):
        return None
    blocks = draws_of(len(values), seed, AGGREGATE_RESAMPLES)
    drawn = [aggregate([values[i] for i in numbers]) for block in blocks for numbers in block]
    interval = percentile_interval(float(whole), np.array([float(value) for value in drawn if _is_finite(value)]))
    return Measure(name, interval.mean, interval.low, interval.high, better)


def _is_finite(value: Any) -> bool:
    return isinstance(value, bool | int | float | np.number) and math.isfinite(float(value))


def _item(task: str, row: Mapping[str, Any]) -> dict[str, Any]:
    asked = row["arguments"][0][0] if row["arguments"] else ""
    shown = {"prompt": asked, "target": row["target"], "answer": row["filtered_resps"]}
    values = {metric: float(row[metric]) for metric in row["metrics"] if _is_finite(row[metric])}
    texts = {key: str(text)[:_SHOWN_CHARACTERS] for key, text in shown.items()}
    return {"id": "/".join((task, str(row["doc_id"]))), "task": task} | texts | values
