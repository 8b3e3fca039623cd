"""Passwords of the servers: who is not let in is told which variable to set, and what is shown carries none."""

from __future__ import annotations

import os
from urllib.parse import urlsplit, urlunsplit

# MLflow's codes for who is not known, and for who may not.
NOT_KNOWN = {"UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}
NOT_ALLOWED = {"PERMISSION_DENIED"}


def without_credentials(url: str) -> str:
    """A URL without the user name and password that may be in it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def explained(code: str | None, text: str) -> str:
    """What MLflow answered; where it is about passwords or names, what to set."""
    if code in NOT_KNOWN:
        return f"MLflow's server lets in who has a password only: {_both('MLFLOW_TRACKING_USERNAME', 'MLFLOW_TRACKING_PASSWORD')}"
    if code in NOT_ALLOWED and "host header" in text.lower():
        return "MLflow's server is not to be reached by the name in MLFLOW_TRACKING_URI: add it to its MLFLOW_ALLOWED_HOSTS"
    if code in NOT_ALLOWED:
        return f"MLflow's server does not let the user of MLFLOW_TRACKING_USERNAME do this: {text}"
    return text


def _both(*names: str) -> str:
    missing = [name for name in names if not os.environ.get(name)]
    return f"set {' and '.join(missing)}" if missing else f"{' or '.join(names)} is wrong"


def require_prefect() -> None:
    """Return if the Prefect API of the settings answers and lets us in.

    Raises:
        ValueError: it does not; says which variable to set.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError
    from prefect.settings import PREFECT_API_AUTH_STRING

    with get_client(sync_client=True) as client:
        where = without_credentials(str(client.api_url)).rstrip("/")
        try:
            client.api_version()
        except PrefectHTTPStatusError as error:
            if error.response.status_code not in (401, 403):
                said = f"The Prefect API {where} answers with {error.response.status_code}"
                raise ValueError(f"{said}: PREFECT_API_URL ends with /api; if it does, see the server's log") from error
            reason = "is wrong" if PREFECT_API_AUTH_STRING.value() else "is not set: it is USER:PASSWORD"
            raise ValueError(f"The Prefect API {where} lets in who has a password only: PREFECT_API_AUTH_STRING {reason}") from None
        except httpx.TransportError as error:
            said = f"No Prefect API answers at {where}, which PREFECT_API_URL names ({type(error).__name__})"
            raise ValueError(f"{said}: start it, or leave PREFECT_API_URL out") from error
