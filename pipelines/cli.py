"""The entry points of all pipelines: Hydra around them, and errors a person can read."""

from __future__ import annotations

import importlib
import logging
import os
import sys
import warnings
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from pipelines.errors import InputError
from pipelines.settings import one_line, set_threads, work_folder
from pipelines.status import stop_watching
from pipelines.workers import keep_freed_memory, take_gpu


def launch(name: str) -> int:
    """Run a pipeline with the command line's overrides; returns the exit status."""
    from pipelines.tracking import detach_from_mlproject

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach this function instead of Hydra's printer
    detach_from_mlproject()
    try:
        try:
            hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)(task)()
        finally:
            stop_watching()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return int(stop.code or 0)
    except KeyboardInterrupt:
        from pipelines.sweep import interrupted

        interrupted()
        return 130
    return 0


def task(cfg: DictConfig) -> None:
    """One Hydra job."""
    from pipelines.cells import open_tracker, process_when_free
    from pipelines.progress import live, say
    from pipelines.sweep import SWEEP_FOLDER, headline, run_job

    _quiet()
    pipeline = importlib.import_module(f"pipelines.{HydraConfig.get().job.config_name}")
    set_threads(cfg)
    keep_freed_memory()
    if SWEEP_FOLDER in os.environ:
        folder = Path(os.environ[SWEEP_FOLDER])
        take_gpu(folder)
        run_job(pipeline, cfg, folder)
        return
    try:
        work_folder(cfg)
        pipeline.check(cfg)
        tracker = open_tracker(cfg)
        with live(pipeline.label(cfg), enabled=cfg.trainer.progress):
            done = process_when_free(pipeline, cfg, tracker)
        state = "already complete (force=true redoes it)" if done.was_complete else f"{done.seconds:.1f} s"
        say(f"{pipeline.label(cfg)}: {headline(done.metrics)}; {state}; run {done.run_id or 'to be delivered'}")
        if done.undelivered:
            raise InputError(f"its result is kept on disk ({done.undelivered}): python -m pipelines.sync delivers it")
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def _quiet() -> None:
    for name in ("mlflow", "alembic", "art"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric|torch.optim.lr_scheduler|mlflow")


def attack() -> int:
    return launch("attack")


def train() -> int:
    return launch("train")


def evaluate() -> int:
    return launch("evaluate")


def transfer() -> int:
    return launch("transfer")


def alignment() -> int:
    return launch("alignment")


def sensitivity() -> int:
    return launch("sensitivity")
