"""Sweeps: every cell checked before the first one runs, progress as they run, a summary at the end.

The launching process writes a plan to ``WORK/sweeps/ID`` and names that folder in the environment; each job,
in this process or another, writes beside it what its cell is at (`pipelines.plan`), and the launching process
tells of it (`pipelines.status`). Cells that other launches work on are put off until the end, and then done
if they still need to be.
"""

from __future__ import annotations

import copy
import hashlib
import importlib
import os
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from mlflow.entities import RunStatus
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from pipelines import status
from pipelines.cells import POLL_S, Pipeline, open_tracker
from pipelines.claims import SWEEP_FOLDER, BusyError, Claim, holder, is_held
from pipelines.delivery import deliver_all
from pipelines.errors import InputError
from pipelines.findings import attach
from pipelines.fingerprints import fingerprint
from pipelines.jobs import task
from pipelines.plan import Cell, Outcome, Sweep, duration
from pipelines.progress import say
from pipelines.results import Facts
from pipelines.settings import one_line, work_folder
from pipelines.tracking import STORE_ERRORS, Tracker, complete_fingerprints

MAX_REPORTED = 10
_parent: Claim | None = None  # of the sweep that this process launches
_AXES_OF_ATTACKS = ("seed", "attack", "backend", "n=", "targets", "apply", "count")


class SweepCallback(Callback):
    """Hydra callback: plans a multirun, tells of it while it runs, and sums it up."""

    def on_multirun_start(self, config: DictConfig, config_name: str | None = None, **kwargs: Any) -> None:
        # Hydra turns a callback's exceptions into warnings; SystemExit is not one of them
        try:
            self._plan(config, importlib.import_module(f"pipelines.{config_name}"))
        except (InputError, HydraException, OmegaConfBaseException) as error:
            raise SystemExit(f"error: {one_line(error)}") from None
        except OSError as error:
            raise SystemExit(f"error: {one_line(error)}: make room there or choose another folder") from None
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None

    def _plan(self, config: DictConfig, pipeline: Pipeline) -> None:
        _order_axes(config)
        overrides = _jobs(config)
        say(f"checking {len(overrides)} cells")
        configs = _compose_all(config, overrides)
        work = work_folder(config)
        _deliver_kept(work)
        complete = set() if config.force else complete_fingerprints(config.tracking.uri)
        keys = _check_all(pipeline, configs, complete)
        tracker = open_tracker(configs[0])
        tracker.bury()
        cells: dict[str, Cell] = {}
        for cfg, key, group, job in zip(configs, keys, _groups(configs), overrides, strict=True):
            cells.setdefault(key, Cell(key, pipeline.label(cfg), group, key in complete, job))
        planned = list(cells.values())
        known = sum(cell.complete for cell in planned)
        say(f"{len(planned)} cells, {known} of them complete; study {config.study} in {tracker.uri}")
        if known == len(planned):
            say("nothing to do (force=true would redo them)")
            raise SystemExit(0)
        global _parent
        _parent = _parent_run(tracker, pipeline, config, planned)
        folder = work / "sweeps" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        title = f"{_title(pipeline, config, len(planned))}; study {config.study}"
        store = {"uri": tracker.uri, "study": tracker.study}
        sweep = Sweep.write(folder, _parent.run_id, planned, title=title, on_terminal=sys.stderr.isatty(), store=store)
        os.environ[SWEEP_FOLDER] = str(folder)
        status.watch(sweep)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            self._finish(config)
        except Exception:
            traceback.print_exc()
            raise SystemExit(1) from None

    def _finish(self, config: DictConfig) -> None:
        sweep = Sweep(Path(os.environ[SWEEP_FOLDER]))
        _do_deferred(config, sweep)
        _deliver_kept(work_folder(config), of=sweep)
        status.stop_watching()
        counts = sum_up(sweep)
        unfinished = len(sweep.cells) - counts["done"] - counts["complete"]
        _end(sweep, RunStatus.FAILED if unfinished else RunStatus.FINISHED)
        if unfinished:
            raise SystemExit(1)


def _deliver_kept(work: Path, of: Sweep | None = None) -> None:
    """Deliver what is kept in the working folder; the cells of a sweep that were undelivered then are done."""
    delivered, left = deliver_all(work)
    for facts in delivered:
        outcome = of.outcomes().get(facts.fingerprint) if of is not None else None
        if of is not None and outcome is not None and outcome.status == "undelivered":
            of.record(facts.fingerprint, replace(outcome, status="done", reason=""))
    if delivered:
        settle(work, delivered)
        say(f"{len(delivered)} results that were kept on disk delivered")
    if left and of is None:
        say(f"{len(left)} results stay in {work / 'results'}: {next(iter(left.values()))}")


def _do_deferred(config: DictConfig, sweep: Sweep) -> None:
    """Do what was put off once nobody else works on it; what others complete needs nothing more."""
    said = ""
    work = work_folder(config)
    while True:
        outcomes = sweep.outcomes()
        deferred = [cell for cell in sweep.cells if cell.key in outcomes and outcomes[cell.key].status == "deferred"]
        complete, claimed = _complete_and_claimed(config)
        for cell in deferred:
            if cell.key in complete:
                sweep.record(cell.key, Outcome("complete"))
        waiting = [cell for cell in deferred if cell.key not in complete]
        if not waiting:
            return
        needs = {cell.key: {cell.key, outcomes[cell.key].waits_for} for cell in waiting}
        free = [c for c in waiting if not any(key in claimed or is_held(work, key) for key in needs[c.key])]
        if free:
            _launch_again(config, [cell.overrides for cell in free])
        else:
            reasons = Counter(outcomes[cell.key].reason for cell in waiting)
            text = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            if text != said:
                said = text
                say(f"waiting for {len(waiting)} cells: {text}")
        time.sleep(POLL_S)


def _complete_and_claimed(config: DictConfig) -> tuple[set[str], set[str]]:
    """The fingerprints that are complete, and those that somebody works on; none while the store is away."""
    tracker = open_tracker(config, may_be_away=True)
    if tracker.away is not None:
        return set(), set()
    try:
        return set() if config.force else tracker.complete_fingerprints(), tracker.claimed_fingerprints()
    except (InputError, *STORE_ERRORS):
        return set(), set()


def _launch_again(config: DictConfig, jobs: list[list[str]]) -> None:
    context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
    launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
    launcher.launch(jobs, initial_job_idx=0)


def sum_up(sweep: Sweep) -> Counter[str]:
    """Say how the cells of a sweep ended, and how to go on; returns how many ended in which way."""
    outcomes = sweep.outcomes()
    counts = Counter(outcome.status for outcome in outcomes.values())
    others = counts["complete"] - sum(cell.complete for cell in sweep.cells)
    missing = len(sweep.cells) - len(outcomes) + counts["deferred"]
    say(
        f"{counts['done']} cells done, {counts['complete'] - others} were complete, {counts['failed']} failed"
        + (f", {others} completed by others" if others else "")
        + (f", {counts['undelivered']} done but kept on disk" if counts["undelivered"] else "")
        + (f", {missing} not run" if missing else "")
        + f"; {duration(time.time() - sweep.launcher.started)}"
    )
    for cell in sweep.cells:
        if cell.key in outcomes and outcomes[cell.key].status == "failed":
            say(f"  failed: {cell.label}: {outcomes[cell.key].reason}")
    if counts["undelivered"]:
        reason = next(outcome.reason for outcome in outcomes.values() if outcome.status == "undelivered")
        say(f"the store does not have all results ({reason}): python -m pipelines.sync delivers them")
    if counts["failed"] or missing:
        say("run the same command again to do what is missing")
    for log in sweep.folder.glob("worker-*.log"):
        if log.stat().st_size:
            say(f"messages of a worker: {log}")
    return counts


def interrupted() -> None:
    """Sum up what Ctrl-C has ended; nothing of it is lost."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    if SWEEP_FOLDER in os.environ:
        say("interrupted")
        sweep = Sweep(Path(os.environ[SWEEP_FOLDER]))
        sum_up(sweep)
        _end(sweep, RunStatus.KILLED)
    else:
        say("interrupted: run the same command to go on")
    signal.signal(signal.SIGINT, handler)


def launcher_failed(error: Exception) -> None:
    """Sum up what ended with the launcher, as when a worker takes more memory than there is and is killed."""
    sweep = Sweep(Path(os.environ[SWEEP_FOLDER]))
    log = sweep.folder / "launcher.log"
    log.write_text("".join(traceback.format_exception(error)))
    say(f"the launcher failed: {next(iter(str(error).strip().splitlines()), type(error).__name__)}; details: {log}")
    sum_up(sweep)
    _end(sweep, RunStatus.FAILED)


def _end(sweep: Sweep, how: int) -> None:
    """Let the parent run say how the sweep ended, and the runs of processes that were stopped that they were."""
    global _parent
    os.environ.pop(SWEEP_FOLDER, None)
    if _parent is not None:
        _parent.release()
        _parent = None
    tracker = Tracker(sweep.store["uri"], sweep.store["study"])
    try:
        tracker.connect()
        _close(tracker, sweep, how)
        if how != RunStatus.KILLED:
            attach(tracker, sweep, sweep.parent)
        tracker.bury()
    except Exception as error:  # its results are safe
        say(f"the sweep's parent run could not be closed: {one_line(error)}")


def _close(tracker: Tracker, sweep: Sweep, how: int) -> None:
    counts = Counter(outcome.status for outcome in sweep.outcomes().values())
    complete = counts["done"] + counts["complete"]
    tracker.log_metrics(sweep.parent, {"cells_complete": complete, "cells_failed": counts["failed"]})
    ended = "interrupted" if how == RunStatus.KILLED else "not all cells are complete"
    tracker.end(sweep.parent, how, "" if how == RunStatus.FINISHED else ended)


def settle(work: Path, delivered: list[Facts]) -> None:
    """Close the parent runs of sweeps whose last results were delivered after their end."""
    parents = {facts.parent for facts in delivered}
    for plan in (work / "sweeps").glob("*/plan.json"):
        sweep = Sweep(plan.parent)
        if sweep.parent not in parents:
            continue
        tracker = Tracker(sweep.store["uri"], sweep.store["study"])
        complete = tracker.complete_fingerprints() & {cell.key for cell in sweep.cells}
        parent = tracker.client.get_run(sweep.parent)
        if len(complete) == len(sweep.cells) and holder(parent) is None:
            tracker.reopen(parent)
            tracker.log_metrics(sweep.parent, {"cells_complete": len(complete), "cells_failed": 0})
            tracker.end(sweep.parent, RunStatus.FINISHED)
            attach(tracker, sweep, sweep.parent)


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


def _parent_run(tracker: Tracker, pipeline: Pipeline, config: DictConfig, cells: list[Cell]) -> Claim:
    """The run that holds this sweep together: the same cells always meet in the same one."""
    key = hashlib.sha256("".join(sorted(cell.key for cell in cells)).encode()).hexdigest()[:16]
    axes = _axes(config)
    command = " ".join(["python -m", f"pipelines.{pipeline.KIND}", "-m", *config.hydra.overrides.task])
    name = _title(pipeline, config, len(cells))
    listed = "\n".join(f"- **{axis}**: {value}" for axis, value in axes.items())
    note = f"A sweep of {len(cells)} cells.\n\n{listed}\n\n    {command}\n"
    known = tracker.find_sweep(key)
    if known is None:
        params = {axis.replace("@", ":"): value for axis, value in axes.items()}  # MLflow takes no @ in names
        facts = tracker.facts(name[:250], kind="sweep", fingerprint=key, params=params, parent=None, note=note)
        try:
            return tracker.claim(facts)
        except BusyError:  # another launch has just begun it
            known = tracker.find_sweep(key)
            assert known is not None
    tracker.reopen(known)
    claim = Claim(tracker.client, known.info.run_id)
    claim.hold()
    return claim


def _axes(config: DictConfig) -> dict[str, str]:
    return {o.partition("=")[0].lstrip("+~"): o.partition("=")[2] for o in config.hydra.overrides.task}


def _title(pipeline: Pipeline, config: DictConfig, count: int) -> str:
    swept = " × ".join(value for value in _axes(config).values() if "," in value)
    return f"{pipeline.KIND} sweep, {count} cells: {swept}"
