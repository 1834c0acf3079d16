"""Results on disk: what a cell found out lies whole in ``WORK/results`` before any of it is sent to the store.

``WORK/results/FINGERPRINT`` holds `result.json` and the files of `artifacts`. It appears under that name by one
rename once it is whole, and is removed once the tracking store has it all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from pipelines.errors import InputError
from qnn.data import ImageData

FACTS = "result.json"
ARTIFACTS = "artifacts"
_PICTURES = "pictures"
_PARTIAL, _DELIVERED, _DAMAGED = ".partial", ".delivered", ".damaged"


@dataclass
class Facts:
    """What `result.json` holds; times in ms since 1970.

    Attributes:
        run_id: the run that was begun in the store for this cell, if it could be reached.
        source: fingerprint and run id of the run whose network or examples were used, either may be empty.
        metrics: key, value, time, step.
        pictures: key and step of the files in `pictures`, by file name.
        model: which folder of the artifacts to track as an MLflow model, and its form.
        files: the SHA-256 of every file of the result.
    """

    id: str
    uri: str
    study: str
    name: str
    fingerprint: str
    parent: str | None
    forced: bool
    tags: dict[str, str]
    params: dict[str, str]
    started: int
    ended: int = 0
    run_id: str | None = None
    source: tuple[str, str] = ("", "")
    dataset: dict[str, str] | None = None
    metrics: list[tuple[str, float, int, int]] = field(default_factory=list)
    pictures: dict[str, tuple[str, int]] = field(default_factory=dict)
    model: dict[str, Any] | None = None
    files: dict[str, str] = field(default_factory=dict)


class Result:
    """A folder that a cell's result is gathered in, or lies in once it is whole.

    Attributes:
        undelivered: why the tracking store does not have it; empty once that has.
    """

    def __init__(self, folder: Path, facts: Facts) -> None:
        self.folder, self.facts = folder, facts
        self.undelivered = "it has not been sent yet"

    @classmethod
    def begin(cls, work: Path, facts: Facts) -> Result:
        """An empty one; what an interrupted process left half written in its place is removed."""
        folder = work / "results" / (facts.fingerprint + _PARTIAL)
        shutil.rmtree(folder, ignore_errors=True)
        (folder / ARTIFACTS).mkdir(parents=True)
        return cls(folder, facts)

    @classmethod
    def read(cls, folder: Path) -> Result:
        """A whole one.

        Raises:
            FileNotFoundError: there is none.
            InputError: damaged or cut short; it is set aside, so that its cell is run again.
        """
        try:
            stored = json.loads((folder / FACTS).read_bytes())
            facts = Facts(**stored)
            whole = facts.fingerprint == folder.name and facts.files == _digests(folder)
        except (OSError, ValueError, TypeError):
            whole = False
        if not whole:
            aside = folder.with_name(f"{folder.name}{_DAMAGED}-{uuid.uuid4().hex[:8]}")
            folder.rename(aside)
            raise InputError(f"the result kept in {folder} is damaged: set aside as {aside.name}, its cell runs again")
        return cls(folder, facts)

    @property
    def artifacts(self) -> Path:
        return self.folder / ARTIFACTS

    @property
    def metrics(self) -> dict[str, float]:
        """The last value of each metric."""
        return {key: value for key, value, _, _ in self.facts.metrics}

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        self.log_points((key, float(value), now_ms(), 0) for key, value in metrics.items())

    def log_points(self, points: Iterable[tuple[str, float, int, int]]) -> None:
        self.facts.metrics += points

    def log_data(self, data: ImageData, *, context: str) -> None:
        """Note the data set, with its digest."""
        sizes = {"train": len(data.train), "validation": len(data.validation), "test": len(data.test)}
        schema = {"image": list(data.shape), "dtype": "uint8", "classes": list(data.class_names)}
        self.facts.dataset = {
            "name": data.name,
            "digest": data.digest,
            "schema": json.dumps(schema),
            "profile": json.dumps(sizes),
            "context": context,
        }

    def log_table(self, table: pd.DataFrame, name: str) -> None:
        """A table that the UI shows, in the form of MLflow's own tables."""
        table.to_json(self.artifacts / name, orient="split", index=False, date_format="iso")
        listed = json.loads(self.facts.tags.get("mlflow.loggedArtifacts", "[]"))
        self.facts.tags["mlflow.loggedArtifacts"] = json.dumps([*listed, {"path": name, "type": "table"}])

    def log_image(self, image: np.ndarray, *, key: str, step: int) -> None:
        """An image (height, width, 3), uint8, for the UI's image view."""
        name = f"{len(self.facts.pictures)}.png"
        (self.folder / _PICTURES).mkdir(exist_ok=True)
        Image.fromarray(image).save(self.folder / _PICTURES / name)
        self.facts.pictures[name] = (key, step)

    def pictures(self) -> Iterable[tuple[np.ndarray, str, int]]:
        """The images of `log_image` with their key and step."""
        for name, (key, step) in self.facts.pictures.items():
            with Image.open(self.folder / _PICTURES / name) as image:
                yield np.asarray(image), key, step

    def finish(self) -> None:
        """Give it its place among the whole results."""
        self.facts.ended = now_ms()
        self.facts.files = _digests(self.folder)
        with open(self.folder / FACTS, "w") as file:
            json.dump(asdict(self.facts), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        final = self.folder.with_name(self.facts.fingerprint)
        shutil.rmtree(final, ignore_errors=True)  # there is one only where this cell was forced
        self.folder = self.folder.rename(final)

    def remove(self) -> None:
        gone = self.folder.with_name(self.folder.name + _DELIVERED)
        shutil.rmtree(gone, ignore_errors=True)  # there is one only if its removal was cut short
        shutil.rmtree(self.folder.rename(gone), ignore_errors=True)


def now_ms() -> int:
    return int(time.time() * 1000)


def kept(work: Path, fingerprint: str, uri: str) -> Result | None:
    """The result of a cell that the store at `uri` does not have yet.

    Raises:
        InputError: it is damaged; it is set aside.
    """
    try:
        result = Result.read(work / "results" / fingerprint)
    except FileNotFoundError:
        return None
    return result if result.facts.uri == uri else None


def folders(work: Path) -> list[Path]:
    """The folders of all whole results, those that were finished first at the front."""
    found = [path.parent for path in (work / "results").glob(f"*/{FACTS}") if "." not in path.parent.name]
    return sorted(found, key=lambda folder: (folder / FACTS).stat().st_mtime_ns)


def clear(work: Path) -> None:
    """Remove what is left of delivered results whose removal was cut short."""
    for folder in (work / "results").glob(f"*{_DELIVERED}"):
        shutil.rmtree(folder, ignore_errors=True)


def _digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / FACTS)
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
