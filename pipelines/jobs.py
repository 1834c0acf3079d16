"""One Hydra job: a cell by itself, or one of a sweep."""

from __future__ import annotations

import functools
import importlib
import logging
import os
import time
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipelines.cells import Pipeline, open_tracker, process, process_when_free
from pipelines.claims import SWEEP_FOLDER, BusyError
from pipelines.errors import InputError
from pipelines.fingerprints import fingerprint
from pipelines.plan import Outcome, Sweep
from pipelines.processes import Process
from pipelines.progress import heard_by, live, say
from pipelines.settings import one_line, set_threads, work_folder
from pipelines.workers import keep_freed_memory, take_gpu


def task(cfg: DictConfig) -> None:
    """One Hydra job."""
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


def run_job(pipeline: Pipeline, cfg: DictConfig, folder: Path) -> None:
    """One job of a sweep: a failure is written down and does not stop the others."""
    sweep = Sweep(folder)
    key = fingerprint(pipeline.identity(cfg))
    if any(cell.key == key and cell.complete for cell in sweep.cells):
        return
    if sweep.on_terminal and sweep.launcher.process != Process.this():
        _redirect_output(folder)
    begun = sweep.begin(key)
    started = time.perf_counter()
    try:
        with heard_by(lambda text: sweep.begin(key, text, of=begun)):
            done = process(pipeline, cfg, open_tracker(cfg, may_be_away=True), sweep.parent)
        how = "undelivered" if done.undelivered else "complete" if done.was_complete else "done"
        figures = headline(done.metrics) + ("; kept on disk" if done.undelivered else "")
        own_seconds = done.metrics.get("seconds", done.seconds)
        outcome = Outcome(how, done.seconds, own_seconds, reason=done.undelivered, figures=figures)
    except BusyError as busy:
        seconds = time.perf_counter() - started
        outcome = Outcome("deferred", seconds, reason=str(busy), waits_for=busy.fingerprint, figures=f"put off, {busy}")
    except Exception as error:
        trace = "" if isinstance(error, InputError) else traceback.format_exc()
        reason = one_line(error) or type(error).__name__
        outcome = Outcome("failed", time.perf_counter() - started, reason=reason, trace=trace)
    try:
        sweep.record(key, outcome)
    except OSError as error:
        ended = outcome.reason or outcome.figures
        say(f"{pipeline.label(cfg)}: {outcome.status}: {ended}; this could not be noted: {one_line(error)}")


@functools.cache
def _redirect_output(folder: Path) -> None:
    """Let what this worker's libraries print go to a file, where it does not run into the live table."""
    log = os.open(folder / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(log, descriptor)
    os.close(log)


def headline(metrics: Mapping[str, float]) -> str:
    """The one or two figures of a cell worth a glance."""
    if "mean_adversarial_accuracy" in metrics:
        return f"mean adversarial accuracy {metrics['mean_adversarial_accuracy']:.3f}"
    if "adversarial_accuracy" in metrics:
        l2 = f", L2 {metrics['l2']:.3f}" if "l2" in metrics else ""
        return f"adversarial accuracy {metrics['adversarial_accuracy']:.3f}{l2}"
    return f"test accuracy {metrics['test_accuracy']:.2%}" if "test_accuracy" in metrics else "done"
