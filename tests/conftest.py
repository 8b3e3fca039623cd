"""What all tests stand on: an output folder of their own, no server of the user's, and one Prefect API for those that run flows."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before Prefect, MLflow or torch are imported anywhere: they read their settings then.
_HOME = Path(tempfile.mkdtemp(prefix="posttrain-tests-"))
for _name in ("PREFECT_API_URL", "PREFECT_HOME", "PREFECT_PROFILE", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "POSTTRAIN_FAILPOINT"):
    os.environ.pop(_name, None)
os.environ.pop("COLUMNS", None)  # of a terminal that no test has; workers of pytest-xdist are given one
os.environ["POSTTRAIN_HOME"] = str(_HOME)
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell without job control starts background jobs with Ctrl-C ignored, and every process of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tasks.home import configure_environment  # noqa: E402

configure_environment()


def pytest_sessionfinish() -> None:
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An output folder that only this test uses."""
    folder = tmp_path / "home"
    monkeypatch.setenv("POSTTRAIN_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """A Prefect API on a temporary database, for tests that run flows. Without heartbeats: each costs a run a second."""
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120), temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        yield
