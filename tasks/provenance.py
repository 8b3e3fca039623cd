"""Where a run comes from, as tags: the commit, the user, the Prefect run; and its config, as parameters."""

from __future__ import annotations

import functools
import getpass
import json
import os
import posixpath
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.credentials import without_credentials

LONGEST_VALUE = 6000  # characters; MLflow cuts or refuses what is longer
LONGEST_KEY = 250


def config_params(config: Mapping[str, Any] | BaseModel) -> dict[str, str]:
    """A config as flat parameters: {"optimizer.lr": "0.0001"}. Lists are JSON."""
    return {clean_name(name): text[:LONGEST_VALUE] for name, text in _flatten(config, "")}


def clean_name(name: str) -> str:
    """The name with every character that MLflow refuses replaced by an underscore."""
    cleaned = re.sub(r"[^\w\-. :/]", "_", name, flags=re.ASCII)[:LONGEST_KEY]
    # MLflow may use a name as a path, and takes none that could lead elsewhere.
    is_plain = posixpath.normpath(cleaned) == cleaned and not cleaned.startswith(("/", "."))
    return cleaned if is_plain else re.sub(r"[./]", "_", cleaned) or "_"


def model_name(name: str) -> str:
    """A name without the characters that MLflow refuses in a model's name."""
    return re.sub(r"[/:.%\"']", "_", name)


def _flatten(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, Mapping) and value:
        for name, part in value.items():
            yield from _flatten(part, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(value, Mapping) and not prefix:
        return
    elif isinstance(value, (list, tuple, Mapping)):
        yield prefix, json.dumps(value, default=str)
    else:
        yield prefix, str(value)


@functools.cache
def code_tags() -> dict[str, str]:
    """The commit of this checkout and whether files differ from it; empty outside of a git checkout."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return {}
    return {"mlflow.source.git.commit": commit, "git.uncommitted_changes": str(bool(_git("status", "--porcelain"))).lower()}


def _git(*arguments: str) -> str:
    root = Path(__file__).resolve().parents[1]
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def user_tags() -> dict[str, str]:
    """Who runs what, in the tags that MLflow's run list shows."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container without an entry for this user id
        user = f"uid {os.getuid()}"
    return {"mlflow.user": user, "mlflow.source.type": "LOCAL", "mlflow.source.name": Path(sys.argv[0]).name or "python"}


def _prefect_runs() -> bool:
    # Without its engine there is no flow run, and importing Prefect to learn that takes seconds.
    return "prefect.flow_engine" in sys.modules or "prefect.task_engine" in sys.modules


def flow_run() -> Any | None:
    """The Prefect flow run this code is part of, if any."""
    if not _prefect_runs():
        return None
    from prefect.context import FlowRunContext

    context = FlowRunContext.get()
    return context.flow_run if context is not None else None


def deployment_name() -> str:
    """The name of the deployment that the Prefect flow run is of, which is that of a recipe; empty where there is none."""
    run = flow_run()
    if run is None or run.deployment_id is None:
        return ""
    from prefect.runtime import deployment

    return str(deployment.name or "")


def flow_tags() -> dict[str, str]:
    """Tags that lead from MLflow to the Prefect flow run."""
    run = flow_run()
    if run is None:
        return {}
    from prefect.utilities.urls import url_for

    tags = {
        "prefect.flow_run_id": run.id,
        "prefect.flow_run_name": run.name,
        "prefect.flow_run_url": without_credentials(url_for(run) or "") or None,
        "prefect.deployment_id": run.deployment_id,
        "prefect.run_count": run.run_count,
    }
    return {name: str(value) for name, value in tags.items() if value is not None}


def task_tags() -> dict[str, str]:
    """Tags that lead from MLflow to the Prefect task run, and to its flow run."""
    if not _prefect_runs():
        return {}
    from prefect.context import TaskRunContext

    context = TaskRunContext.get()
    run = flow_run()
    tags = {"prefect.task_run_id": context.task_run.id} if context else {}
    tags |= {"prefect.flow_run_id": run.id} if run else {}
    return {name: str(value) for name, value in tags.items()}
