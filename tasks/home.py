"""Where everything that a run leaves behind lies, and the environment that Prefect and MLflow read when they are imported.

    HOME/store     artifacts, cache records, checkpoints, locks (tasks/store.py)
    HOME/runs      one record a run (tasks/registry.py)
    HOME/flow-runs the processes that run flow runs (tasks/claims.py)
    HOME/reports   one page a run (tasks/report.py)
    HOME/prefect   Prefect's database and settings
    HOME/mlflow    MLflow's database and artifacts

HOME is the folder `output` of the checkout, or POSTTRAIN_HOME.
"""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]

# Quiet, local and crash-safe: no telemetry, JSON results, and leases that survive a restart of the server (those in memory
# leak the GPU slot).
ENVIRONMENT = {
    "DO_NOT_TRACK": "1",
    # Memory that a step frees is kept for the next instead of going back to the kernel, which would clear it again: an eighth of an
    # SFT update on a processor was page faults.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=1073741824:glibc.malloc.trim_threshold=1073741824",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # Idle threads spin some ten microseconds for the next parallel region, then sleep. Spinning on, two training processes on the same
    # cores slow each other tenfold; sleeping at once, each small operation waits 50 us and more for its threads to wake.
    "GOMP_SPINCOUNT": "2000",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_RESULTS_DEFAULT_SERIALIZER": "json",
    "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
}


def home() -> Path:
    """The output folder: POSTTRAIN_HOME, or `output` in the checkout. Read at every call, since tests move it."""
    return Path(os.environ.get("POSTTRAIN_HOME") or CHECKOUT / "output").expanduser().resolve()


def answer_cache() -> Path:
    """Where answers of AI judges that were paid for lie, for all runs."""
    return home() / "judge" / "answers.sqlite"


def configure_environment() -> None:
    """Set what the user has not set. To be called before the first import of prefect and mlflow, which read their settings then."""
    root = home()
    for folder in (root / "prefect", root / "mlflow"):
        folder.mkdir(parents=True, exist_ok=True)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("PREFECT_HOME", str(root / "prefect"))
    os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{root / 'mlflow' / 'mlflow.db'}")
