"""Reading the tracking store."""

from __future__ import annotations

import os
from pathlib import Path

_SQLITE = "sqlite:///"


def default_uri() -> str:
    """`MLFLOW_TRACKING_URI`, or an SQLite file in the working directory (where `mlflow ui` looks too)."""
    return absolute_uri(os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}mlflow.db")


def absolute_uri(uri: str) -> str:
    """Make an SQLite address independent of the working directory.

    >>> absolute_uri("sqlite:////tmp/runs.db")
    'sqlite:////tmp/runs.db'
    """
    if uri.startswith(_SQLITE):
        return _SQLITE + str(Path(uri.removeprefix(_SQLITE)).absolute())
    return uri
