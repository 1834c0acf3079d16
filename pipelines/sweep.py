"""Sweeps: every cell checked before the first one runs, progress as they run, a summary at the end.

The launching process writes a plan to ``WORK/sweeps/ID`` and names that folder in the environment; each job,
in this process or another, writes beside it what its cell is at (`pipelines.plan`), and the launching process
tells of it (`pipelines.status`).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib
import os
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from mlflow.entities import RunStatus
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from pipelines import status
from pipelines.cells import Pipeline, open_tracker, process
from pipelines.errors import InputError
from pipelines.findings import attach
from pipelines.fingerprints import fingerprint
from pipelines.plan import Cell, Outcome, Sweep, duration
from pipelines.progress import heard_by, say
from pipelines.settings import one_line, work_folder
from pipelines.tracking import Tracker, complete_fingerprints

SWEEP_FOLDER = "QNN_SWEEP_FOLDER"
MAX_REPORTED = 10
_AXES_OF_ATTACKS = ("seed", "attack", "backend", "n=", "targets", "apply", "count")


def run_job(pipeline: Pipeline, cfg: DictConfig, folder: Path) -> None:
    """One job of a sweep: a failure is written down and does not stop the others."""
    sweep = Sweep(folder)
    key = fingerprint(pipeline.identity(cfg))
    if any(cell.key == key and cell.complete for cell in sweep.cells):
        return
    if sweep.on_terminal and os.getpid() != sweep.launcher.pid:
        _redirect_output(folder)
    begun = sweep.begin(key)
    started = time.perf_counter()
    try:
        with heard_by(lambda text: sweep.begin(key, text, of=begun)):
            done = process(pipeline, cfg, open_tracker(cfg), sweep.parent)
        metrics = done.run.data.metrics
        status = "complete" if done.was_complete else "done"
        own_seconds = metrics.get("seconds", done.seconds)
        outcome = Outcome(status, done.seconds, own_seconds, figures=headline(metrics))
    except Exception as error:
        trace = "" if isinstance(error, InputError) else traceback.format_exc()
        reason = one_line(error) or type(error).__name__
        outcome = Outcome("failed", time.perf_counter() - started, reason=reason, trace=trace)
    sweep.record(key, outcome)


@functools.cache
def _redirect_output(folder: Path) -> None:
    """Let what this worker's libraries print go to a file, where it does not run into the live table."""
    log = os.open(folder / f"worker-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for descriptor in (1, 2):
        if os.isatty(descriptor):
            os.dup2(log, descriptor)
    os.close(log)


def headline(metrics: dict[str, float]) -> str:
    """The one or two figures of a cell worth a glance."""
    if "mean_adversarial_accuracy" in metrics:
        return f"mean adversarial accuracy {metrics['mean_adversarial_accuracy']:.3f}"
    if "adversarial_accuracy" in metrics:
        l2 = f", L2 {metrics['l2']:.3f}" if "l2" in metrics else ""
        return f"adversarial accuracy {metrics['adversarial_accuracy']:.3f}{l2}"
    return f"test accuracy {metrics['test_accuracy']:.2%}" if "test_accuracy" in metrics else "done"


class SweepCallback(Callback):
    """Hydra callback: plans a multirun, tells of it while it runs, and sums it up."""

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        # Hydra turns a callback's exceptions into warnings; SystemExit is not one of them
        try:
            self._plan(config, importlib.import_module(f"pipelines.{config_name}"))
        except (InputError, HydraException, OmegaConfBaseException) as error:
            raise SystemExit(f"error: {one_line(error)}") from None
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None

    def _plan(self, config: DictConfig, pipeline: Pipeline) -> None:
        _order_axes(config)
        overrides = _jobs(config)
        say(f"checking {len(overrides)} cells")
        configs = _compose_all(config, overrides)
        complete = set() if config.force else complete_fingerprints(config.tracking.uri)
        keys = _check_all(pipeline, configs, complete)
        tracker = open_tracker(configs[0])
        cells: dict[str, Cell] = {}
        for cfg, key, group in zip(configs, keys, _groups(configs), strict=True):
            cells.setdefault(key, Cell(key, pipeline.label(cfg), group, key in complete))
        planned = list(cells.values())
        known = sum(cell.complete for cell in planned)
        say(f"{len(planned)} cells, {known} of them complete; study {config.study} in {tracker.uri}")
        if known == len(planned):
            say("nothing to do (force=true would redo them)")
            raise SystemExit(0)
        parent = _parent_run(tracker, pipeline, config, planned)
        folder = work_folder(config) / "sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        title = f"{_title(pipeline, config, len(planned))}; study {config.study}"
        sweep = Sweep.write(folder, parent, planned, title=title, on_terminal=sys.stderr.isatty())
        os.environ[SWEEP_FOLDER] = str(folder)
        status.watch(sweep)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        status.stop_watching()
        sweep = Sweep(Path(os.environ.pop(SWEEP_FOLDER)))
        outcomes = sweep.outcomes()
        counts = Counter(outcome.status for outcome in outcomes.values())
        missing = len(sweep.cells) - len(outcomes)
        failed = [
            (cell, outcomes[cell.key]) for cell in sweep.cells if outcomes.get(cell.key, Outcome("")).status == "failed"
        ]
        say(
            f"{counts['done']} cells done, {counts['complete']} were complete, {len(failed)} failed"
            + (f", {missing} not run" if missing else "")
            + f"; {duration(time.time() - sweep.launcher.started)}"
        )
        for cell, outcome in failed:
            say(f"  failed: {cell.label}: {outcome.reason}")
        if failed or missing:
            say("run the same command again to do what is missing")
        for log in sweep.folder.glob("worker-*.log"):
            if log.stat().st_size:
                say(f"messages of a worker: {log}")
        _close_parent(config, sweep, counts, failed=bool(failed or missing))
        if failed or missing:
            raise SystemExit(1)


def _order_axes(config: DictConfig) -> None:
    """Let the axes of the network vary fastest, so that parallel jobs start with different networks.

    The axes of the experiment file and of the command line become one list; the command line wins.
    """
    params = config.hydra.sweeper.get("params") or {}
    axes = {key: f"{key}={value}" for key, value in params.items()}
    axes |= {override.partition("=")[0]: override for override in config.hydra.overrides.task}
    with read_write(config), open_dict(config):
        config.hydra.sweeper.params = None
        config.hydra.overrides.task = sorted(axes.values(), key=lambda o: not o.startswith(_AXES_OF_ATTACKS))


def _groups(configs: list[DictConfig]) -> list[str]:
    """What each job does, and to which model where there are several."""
    several = len({cfg.model.name for cfg in configs}) > 1
    kinds = [str(cfg.attack.name) if "attack" in cfg else "train" for cfg in configs]
    return [f"{kind} on {cfg.model.name}" if several else kind for kind, cfg in zip(kinds, configs, strict=True)]


def _jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job, as Hydra's basic sweeper expands them."""
    parsed = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
    return BasicSweeper.split_arguments(parsed, max_batch_size=None)[0]


def _compose_all(config: DictConfig, jobs: list[list[str]]) -> list[DictConfig]:
    """The configs of all jobs; composed once per choice of config files, the plain values set on copies.

    Hydra takes 0.15 s to compose a job, which is the same work for every seed and width.
    """
    loader = GlobalHydra.instance().config_loader()
    assert isinstance(loader, ConfigLoaderImpl)
    parser = OverridesParser.create(config_loader=loader)
    composed: dict[tuple[str, ...], DictConfig] = {}
    configs = []
    for job in jobs:
        parsed = parser.parse_overrides(job)
        files = [o for o in parsed if loader.repository.group_exists(o.key_or_group)]
        key = tuple(str(o.input_line) for o in files)
        if key not in composed:
            whole = loader.load_sweep_config(config, list(key))
            composed[key] = OmegaConf.masked_copy(whole, [str(name) for name in whole if name != "hydra"])
        cfg = copy.deepcopy(composed[key])
        ConfigLoaderImpl._apply_overrides_to_config([o for o in parsed if o not in files], cfg)
        configs.append(cfg)
    return configs


def _check_all(pipeline: Pipeline, configs: list[DictConfig], complete: set[str]) -> list[str]:
    """The fingerprints of the cells, all of which are checked but those that are complete."""
    problems: dict[str, None] = {}
    keys = []
    for cfg in configs:
        key = ""
        with suppress(Exception):  # whatever makes it fail, the check says it better
            key = fingerprint(pipeline.identity(cfg))
        keys.append(key)
        if key in complete:
            continue
        try:
            pipeline.check(cfg)
        except InputError as error:
            problems[one_line(error)] = None
    if problems:
        listed = list(problems)
        more = f" … and {len(listed) - MAX_REPORTED} more" if len(listed) > MAX_REPORTED else ""
        raise InputError("; ".join(listed[:MAX_REPORTED]) + more)
    return [key or fingerprint(pipeline.identity(cfg)) for key, cfg in zip(keys, configs, strict=True)]


def _parent_run(tracker: Tracker, pipeline: Pipeline, config: DictConfig, cells: list[Cell]) -> str:
    """The run that holds this sweep together: the same cells always meet in the same one."""
    key = hashlib.sha256("".join(sorted(cell.key for cell in cells)).encode()).hexdigest()[:16]
    known = tracker.find_sweep(key)
    if known is not None:
        tracker.client.update_run(known, status=RunStatus.to_string(RunStatus.RUNNING))
        return known
    axes = _axes(config)
    command = " ".join(["python -m", f"pipelines.{pipeline.KIND}", "-m", *config.hydra.overrides.task])
    name = _title(pipeline, config, len(cells))
    listed = "\n".join(f"- **{axis}**: {value}" for axis, value in axes.items())
    note = f"A sweep of {len(cells)} cells.\n\n{listed}\n\n    {command}\n"
    return tracker.start(name[:250], kind="sweep", fingerprint=key, params=axes, parent=None, note=note)


def _axes(config: DictConfig) -> dict[str, str]:
    return {o.partition("=")[0].lstrip("+~"): o.partition("=")[2] for o in config.hydra.overrides.task}


def _title(pipeline: Pipeline, config: DictConfig, count: int) -> str:
    swept = " × ".join(value for value in _axes(config).values() if "," in value)
    return f"{pipeline.KIND} sweep, {count} cells: {swept}"


def _close_parent(config: DictConfig, sweep: Sweep, counts: Counter[str], *, failed: bool) -> None:
    parent = sweep.parent
    if parent is None:
        return
    try:
        tracker = open_tracker(config)
        complete = counts["done"] + counts["complete"]
        tracker.log_metrics(parent, {"cells_complete": complete, "cells_failed": counts["failed"]})
        status = RunStatus.FAILED if failed else RunStatus.FINISHED
        tracker.client.set_terminated(parent, RunStatus.to_string(status))
        attach(tracker, sweep, parent)
    except Exception as error:
        print(f"the sweep's parent run could not be closed: {one_line(error)}", file=sys.stderr)
