"""One cell of a study: found complete and skipped, or claimed, run, kept on disk and delivered.

How a study goes on after anything at all, in five sentences. A cell is done when a run of its fingerprint is
tagged complete in the tracking store, or its whole result lies in ``WORK/results`` to be delivered there. While it
is worked on, the launch holds a lock on it in ``WORK/locks`` and a claim on it in the store, and both end with its
process. Its result is gathered in a folder, renamed once whole, then written to the store with the tag complete
last, and only then removed; a delivery that was cut short is deleted from the store and made again. A training
goes on from its last epoch in ``WORK/training``. So the same command run again finds what is done, delivers what is
kept, leaves to others what they work on, and does the rest.

A pipeline is a module with `KIND`, `check(cfg)`, `identity(cfg)`, `label(cfg)` and
`run(cfg, tracker, fingerprint, parent) -> Result`, which fills the result of a `leaf`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from pipelines.claims import BusyError, Claim, hold
from pipelines.delivery import deliver
from pipelines.errors import InputError
from pipelines.fingerprints import fingerprint
from pipelines.progress import say
from pipelines.results import Facts, Result, kept
from pipelines.settings import is_of_disk, one_line, work_folder
from pipelines.tracking import STORE_ERRORS, Tracker

POLL_S = 5
FETCHED = "fetched"
_NAMED_BY_TABLES = {"model", "bits", "attack", "seed", "experiment", "study", "n", "data", "force"}
_OF_OTHERS = {"targets", "apply", "count", "compare", "cell", "images", "stride"}  # what attacks have no use for


class Pipeline(Protocol):
    KIND: str

    def check(self, cfg: DictConfig) -> None:
        """Raise InputError for anything that cannot work, before anything is computed."""

    def identity(self, cfg: DictConfig) -> dict[str, Any]:
        """What determines the outcome."""

    def label(self, cfg: DictConfig) -> str:
        """The cell's name for people."""

    def run(self, cfg: DictConfig, tracker: Tracker, fingerprint: str, parent: str | None) -> Result: ...


@dataclass(frozen=True)
class Done:
    """A cell that is done.

    Attributes:
        run_id: None while its result is yet to be delivered.
        folder: for its artifacts on this machine.
        undelivered: why its result is kept on disk for now; empty once it is in the store.
    """

    fingerprint: str
    run_id: str | None
    folder: Path
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    undelivered: str = ""
    seconds: float = 0.0
    was_complete: bool = False

    @property
    def source(self) -> tuple[str, str]:
        """How a result names it as where it comes from."""
        return self.fingerprint, self.run_id or ""

    def artifact(self, path: str, tracker: Tracker) -> Path:
        """One of its artifacts on this machine; what comes from a server is kept, for when that is away."""
        if self.run_id is not None:
            return tracker.download(self.run_id, path, keep_in=self.folder)
        if not (self.folder / path).exists():
            raise InputError(f"{path} of {self.fingerprint} is gone from {self.folder}: run the same command again")
        return self.folder / path


def open_tracker(cfg: DictConfig, *, may_be_away: bool = False) -> Tracker:
    """The configured tracking store and study."""
    settings = cfg.tracking
    return Tracker.open(
        settings.uri,
        study=cfg.study,
        artifacts=settings.artifacts,
        tags=_launch_tags(),
        may_be_away=may_be_away,
    )


def _launch_tags() -> dict[str, str]:
    """How this process was launched, as far as a table needs it to name the command for a missing cell.

    An experiment of transfers is left out: it sets what the attacks and trainings it needs do not have.
    """
    if not HydraConfig.initialized():
        return {}
    launched = HydraConfig.get()
    others = [o for o in launched.overrides.task if not _is_left_out(o.partition("=")[0].lstrip("+"))]
    experiment = launched.runtime.choices.get("experiment") if launched.job.config_name != "transfer" else None
    tags = {"overrides": " ".join(others), "experiment": experiment or ""}
    return {name: value for name, value in tags.items() if value}


def _is_left_out(name: str) -> bool:
    return name in _NAMED_BY_TABLES or name.partition(".")[0] in _OF_OTHERS


def process(pipeline: Pipeline, cfg: DictConfig, tracker: Tracker, parent: str | None = None) -> Done:
    """Run a cell unless it is done; other jobs of the same launch that need it meanwhile wait and then find it.

    Raises:
        BusyError: another launch, here or on another machine, is working on the cell or on one it needs.
    """
    started = time.perf_counter()
    work, key = work_folder(cfg), fingerprint(pipeline.identity(cfg))
    known = None if cfg.force else _complete(work, key, tracker)
    if known is not None:
        return known
    with hold(work, key):
        known = None if cfg.force else _complete(work, key, tracker) or _kept(work, key, tracker)
        if known is not None:
            return known
        try:
            result = pipeline.run(cfg, tracker, key, parent)
        except Exception as error:
            if is_of_disk(error):
                raise InputError(f"{work} cannot be written to ({one_line(error)}): make room there") from error
            raise
    return _done(result, seconds=time.perf_counter() - started)


def process_when_free(pipeline: Pipeline, cfg: DictConfig, tracker: Tracker) -> Done:
    """As `process`, but wait while another launch works on the cell."""
    said = ""
    while True:
        try:
            return process(pipeline, cfg, tracker)
        except BusyError as busy:
            if str(busy) != said:
                said = str(busy)
                say(f"{pipeline.label(cfg)}: {said}: waiting")
            time.sleep(POLL_S)


def _complete(work: Path, key: str, tracker: Tracker) -> Done | None:
    """The cell as the store has it; while that is away, a network that was fetched from it before."""
    if tracker.away is None:
        try:
            run = tracker.find_complete(key)
        except STORE_ERRORS as error:
            tracker.away = one_line(error)
        else:
            if run is None:
                return None
            folder = _fetched(work, key, run.info.run_id)
            return Done(key, run.info.run_id, folder, run.data.params, run.data.metrics, was_complete=True)
    networks = sorted(_fetched(work, key, "").parent.glob(f"{key}-*/network"))
    if not networks:
        return None
    folder = networks[0].parent
    return Done(key, folder.name.rpartition("-")[2], folder, was_complete=True)


def _fetched(work: Path, key: str, run_id: str) -> Path:
    """Where artifacts of a run are kept that came from a server."""
    return work / FETCHED / f"{key}-{run_id}"


def _kept(work: Path, key: str, tracker: Tracker) -> Done | None:
    """The cell from its result on this disk, delivered now if that is possible."""
    try:
        result = kept(work, key, tracker.uri)
    except InputError as error:
        say(str(error))
        return None
    if result is None:
        return None
    _try_to_deliver(result, tracker)
    return _done(result, was_complete=True)


def _try_to_deliver(result: Result, tracker: Tracker, claim: Claim | None = None) -> None:
    try:
        deliver(result, tracker, claim)
    except Exception as error:  # whatever it is, the result is safe
        result.undelivered = one_line(error) or type(error).__name__


def _done(result: Result, **state: Any) -> Done:
    facts = result.facts
    if result.undelivered:
        run_id, folder = None, result.artifacts
    else:
        run_id = str(facts.run_id)
        folder = _fetched(result.folder.parent.parent, facts.fingerprint, run_id)
    return Done(facts.fingerprint, run_id, folder, facts.params, result.metrics, result.undelivered, **state)


@contextmanager
def leaf(
    cfg: DictConfig,
    tracker: Tracker,
    name: str,
    *,
    kind: str,
    fingerprint: str,
    params: Mapping[str, Any],
    parent: str | None,
    note: str,
    source: tuple[str, str] = ("", ""),
) -> Iterator[Result]:
    """The result of a cell, to be filled: claimed meanwhile, on disk when the block has ended, then delivered.

    Where the store cannot be reached the cell is run unclaimed and its result stays on disk. If the block
    raises, the cell's run says so.

    Args:
        source: `Done.source` of the cell whose network or examples this one uses.

    Raises:
        BusyError: another launch is working on the cell.
    """
    facts = tracker.facts(name, kind=kind, fingerprint=fingerprint, params=params, parent=parent, note=note)
    facts.forced, facts.source = bool(cfg.force), source
    claim = _claim(tracker, facts)
    try:
        result = Result.begin(work_folder(cfg), facts)
        yield result
        result.finish()
        _try_to_deliver(result, tracker, claim)
    except BaseException as error:
        if claim is not None:
            with suppress(Exception):
                tracker.fail(claim.run_id, error)
        raise
    finally:
        if claim is not None:
            claim.release()


def _claim(tracker: Tracker, facts: Facts) -> Claim | None:
    if tracker.away is not None:
        return None
    try:
        claim = tracker.claim(facts)
    except STORE_ERRORS as error:
        tracker.away = one_line(error)
        return None
    facts.run_id = claim.run_id
    return claim
