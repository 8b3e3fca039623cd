"""Python functions named in a configuration, as module:function."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models.source import meaning_digest


def load_callable(name: str, field: str) -> Callable[..., Any]:
    """The function that a configuration names in ``field``.

    Raises:
        ValueError: it cannot be imported.
    """
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{field} {name!r} cannot be imported ({error}): write module:function") from error


def callable_digest(name: str) -> str:
    """Digest of the meaning of the file that holds the function: an edited function is another function.

    "absent" where it cannot be found: the stage itself says so when it starts. What that file imports is not followed.
    """
    try:
        spec = importlib.util.find_spec(name.partition(":")[0])
    except (ImportError, ValueError):
        return "absent"
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return "absent"
    return meaning_digest(Path(spec.origin).read_bytes())
