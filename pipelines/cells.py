"""One cell of a study: found complete and skipped, or run under its lock.

A pipeline is a module with `KIND`, `check(cfg)`, `identity(cfg)`, `label(cfg)` and
`run(cfg, tracker, fingerprint, parent) -> run id`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from mlflow.entities import Run
from omegaconf import DictConfig

from pipelines.fingerprints import fingerprint
from pipelines.settings import work_folder
from pipelines.tracking import Tracker

_NAMED_BY_TABLES = {"model", "bits", "attack", "seed", "experiment", "study", "n", "data", "force"}
# what attacks have no use for
_OF_OTHERS = {"targets.model", "targets.bits", "targets.seed", "apply", "count", "compare", "cell", "images", "stride"}


class Pipeline(Protocol):
    KIND: str

    def check(self, cfg: DictConfig) -> None:
        """Raise InputError for anything that cannot work, before anything is computed."""

    def identity(self, cfg: DictConfig) -> dict[str, Any]:
        """What determines the outcome."""

    def label(self, cfg: DictConfig) -> str:
        """The cell's name for people."""

    def run(self, cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> str: ...


@dataclass(frozen=True)
class Done:
    """A complete cell."""

    run: Run
    seconds: float
    was_complete: bool


def open_tracker(cfg: DictConfig) -> Tracker:
    """The configured tracking store and study."""
    settings = cfg.tracking
    return Tracker.open(
        settings.uri, study=cfg.study, artifacts=settings.artifacts, work=work_folder(cfg), tags=_launch_tags()
    )


def _launch_tags() -> dict[str, str]:
    """How this process was launched, as far as a table needs it to name the command for a missing cell.

    An experiment of transfers is left out: it sets what the attacks and trainings it needs do not have.
    """
    if not HydraConfig.initialized():
        return {}
    launched = HydraConfig.get()
    others = [o for o in launched.overrides.task if o.partition("=")[0] not in _NAMED_BY_TABLES | _OF_OTHERS]
    experiment = launched.runtime.choices.get("experiment") if launched.job.config_name != "transfer" else None
    tags = {"overrides": " ".join(others), "experiment": experiment or ""}
    return {name: value for name, value in tags.items() if value}


def process(pipeline: Pipeline, cfg: DictConfig, tracker: Tracker, parent: str | None = None) -> Done:
    """Run a cell unless it is complete; whoever asks for the same cell meanwhile waits and then finds it."""
    started = time.perf_counter()
    key = fingerprint(pipeline.identity(cfg))
    known = None if cfg.force else tracker.find_complete(key)
    if known is not None:
        return Done(known, 0.0, was_complete=True)
    locks = work_folder(cfg) / "locks"
    locks.mkdir(exist_ok=True)
    with FileLock(locks / f"{key}.lock"):
        known = None if cfg.force else tracker.find_complete(key)
        if known is not None:
            return Done(known, time.perf_counter() - started, was_complete=True)
        run_id = pipeline.run(cfg, tracker, key, parent)
    return Done(tracker.client.get_run(run_id), time.perf_counter() - started, was_complete=False)
