"""What is shown carries no password, and who is not let in is told which variable to set."""

import pytest

from tasks import tracking
from tasks.credentials import explained, without_credentials


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://ada:s3cret@mlflow.example.org/path?a=b", "https://mlflow.example.org/path?a=b"),
        ("https://ada@mlflow.example.org", "https://mlflow.example.org"),
        ("https://ada:s3@cret@mlflow.example.org", "https://mlflow.example.org"),
        ("http://ada:s3cret@[::1]:4200/api", "http://[::1]:4200/api"),
        ("", ""),
    ],
)
def test_an_address_is_shown_without_its_password(url, shown):
    assert without_credentials(url) == shown


def test_the_page_of_mlflow_is_shown_without_its_password(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:s3cret@mlflow.example.org/")
    assert tracking.ui_url() == "https://mlflow.example.org"


@pytest.mark.parametrize(
    ("user", "password", "advice"),
    [
        ("", "", "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"),
        ("ada", "", "set MLFLOW_TRACKING_PASSWORD"),
        ("ada", "s3cret", "MLFLOW_TRACKING_USERNAME or MLFLOW_TRACKING_PASSWORD is wrong"),
    ],
)
def test_who_is_not_known_is_told_what_to_set(monkeypatch, user, password, advice):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", user)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)
    said = explained("UNAUTHENTICATED", "401 for s3cret")
    assert said.endswith(advice) and "s3cret" not in said


def test_who_may_not_and_where_nobody_may_are_told_apart():
    assert "MLFLOW_ALLOWED_HOSTS" in explained("PERMISSION_DENIED", "Invalid Host header - possible DNS rebinding attack detected")
    assert explained("PERMISSION_DENIED", "Permission denied").endswith("MLFLOW_TRACKING_USERNAME do this: Permission denied")
    assert explained("RESOURCE_DOES_NOT_EXIST", "No run 7") == explained(None, "No run 7") == "No run 7"
