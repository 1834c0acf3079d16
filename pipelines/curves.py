"""What a training says as it goes: its curves, kept on disk and shown live where the store can be reached; notes."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers.logger import Logger

from pipelines.progress import note
from pipelines.results import now_ms
from pipelines.tracking import STORE_ERRORS, Tracker

_RETRY_S = 60
_STEP_NOTES_S = 5


class Curves(Logger):
    """Lightning logger that writes ``curves.json`` in a training's folder.

    Points that a resumed training computes again are left out, so that every point has one time and the store,
    which knows a point by its time too, never holds one twice.

    Args:
        run_id: the run that shows the curves while they grow; None for none. A store that is away is left alone
            for a minute; what it misses is delivered with the result.
    """

    def __init__(self, folder: Path, tracker: Tracker, run_id: str | None) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._path, self._tracker, self._run_id = folder / "curves.json", tracker, run_id
        stored = json.loads(self._path.read_text()) if self._path.is_file() else []
        self._points = {(key, step): (key, value, at, step) for key, value, at, step in stored}
        self._sent, self._not_before = 0, 0.0

    @property
    def name(self) -> str:
        return "curves"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run has them already."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now, step = now_ms(), step or 0
        for key, value in metrics.items():
            self._points.setdefault((key, step), (key, float(value), now, step))
        scratch = self._path.with_suffix(".tmp")
        scratch.write_text(json.dumps(self.points()))
        scratch.replace(self._path)
        self._show()

    def points(self) -> list[tuple[str, float, int, int]]:
        """Key, value, time (ms since 1970) and step of each."""
        return list(self._points.values())

    def _show(self) -> None:
        if self._run_id is None or time.monotonic() < self._not_before:
            return
        points = self.points()
        try:
            self._tracker.log_points(self._run_id, points[self._sent :])
            self._sent = len(points)
        except STORE_ERRORS:
            self._not_before = time.monotonic() + _RETRY_S


class Epochs(Callback):
    """Notes the validation accuracy after each epoch, and every few seconds how far the epoch is."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._noted = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() - self._noted > _STEP_NOTES_S:
            self._note(trainer, f"step {trainer.fit_loop.batch_idx + 1}/{trainer.num_training_batches}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._note(trainer, f"validation accuracy {float(trainer.callback_metrics['val_accuracy']):.2%}")

    def _note(self, trainer: Trainer, what: str) -> None:
        self._noted = time.monotonic()
        note(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}, {what}", of=f"training {self._name}")
