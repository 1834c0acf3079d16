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


def launch(name: str) -> int:
    """Run a pipeline with the command line's overrides; returns the exit status."""
    from pipelines.tracking import detach_from_mlproject

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach this function instead of Hydra's printer
    detach_from_mlproject()
    try:
        hydra.main(version_base="1.3", config_path="pkg://conf", config_name=name)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except SystemExit as stop:
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            return 1
        return int(stop.code or 0)
    except KeyboardInterrupt:
        print(f"interrupted{_so_far()}: what is complete is kept; run the same command to go on", file=sys.stderr)
        return 130
    return 0


def _so_far() -> str:
    from pipelines.sweep import SWEEP_FOLDER, Sweep

    if SWEEP_FOLDER not in os.environ:
        return ""
    sweep = Sweep(Path(os.environ[SWEEP_FOLDER]))
    finished = sum(outcome.status != "failed" for outcome in sweep.outcomes().values())
    return f" with {finished} of {len(sweep.cells)} cells complete"


def task(cfg: DictConfig) -> None:
    """One Hydra job."""
    from pipelines.cells import open_tracker, process
    from pipelines.progress import live, say
    from pipelines.sweep import SWEEP_FOLDER, headline, run_job

    _quiet()
    pipeline = importlib.import_module(f"pipelines.{HydraConfig.get().job.config_name}")
    set_threads(cfg)
    if SWEEP_FOLDER in os.environ:
        jobs = HydraConfig.get().launcher.get("n_jobs", 1)
        run_job(pipeline, cfg, Path(os.environ[SWEEP_FOLDER]), jobs if jobs > 0 else os.cpu_count() or 1)
        return
    try:
        work_folder(cfg)
        pipeline.check(cfg)
        tracker = open_tracker(cfg)
        with live(pipeline.label(cfg), enabled=cfg.trainer.progress):
            done = process(pipeline, cfg, tracker)
        state = "already complete (force=true redoes it)" if done.was_complete else f"{done.seconds:.1f} s"
        say(f"{pipeline.label(cfg)}: {headline(done.run.data.metrics)}; {state}; run {done.run.info.run_id}")
    except InputError as error:
        raise SystemExit(f"error: {error}") from None


def _quiet() -> None:
    for name in ("pytorch_lightning", "lightning_fabric", "mlflow", "alembic", "art"):
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
