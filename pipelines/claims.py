"""Who works on a cell: a lock in the working folder, and a claim in the store that launchers elsewhere can read.

A claim is a tag on the unfinished run of a cell. It names its process and is renewed while that lives. It is void
once its process is gone, which is seen at once on the same machine and after `EXPIRES_S` from elsewhere
(so the clocks of the machines must agree better than that).

Tracking stores have no locks, so a claim is made in two steps, as at Lamport's bakery: put up a run, and if no
claim on the cell is firm, make this one firm. Of those that became firm at the same time the lowest run id wins,
once nobody is between the two steps any more. No clock is needed for that.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from mlflow import MlflowClient
from mlflow.entities import Run

from pipelines.processes import Process

CLAIM = "claim"
BEAT_S = 20
EXPIRES_S = 120
SWEEP_FOLDER = "QNN_SWEEP_FOLDER"
_DECISION_S = 10
_PROCESS = [field.name for field in fields(Process)]

_held: set[str] = set()  # the runs that this process has claimed


class BusyError(Exception):
    """A cell that somebody else is working on.

    Attributes:
        fingerprint: of that cell, which may be the network that the one asked for needs.
    """

    def __init__(self, fingerprint: str, who: str) -> None:
        super().__init__(f"in work by {who}")
        self.fingerprint = fingerprint


@contextmanager
def hold(work: Path, key: str) -> Iterator[None]:
    """The lock of a cell in this working folder; it is the kernel's, so it ends with its process however that ends.

    Raises:
        BusyError: another launch holds it. Jobs of one launch wait for one another.
    """
    folder = work / "locks"
    folder.mkdir(exist_ok=True)
    lock, holder = FileLock(folder / f"{key}.lock"), folder / f"{key}.holder"
    launch = os.environ.get(SWEEP_FOLDER, str(os.getpid()))
    while True:
        try:
            lock.acquire(timeout=1)
            break
        except Timeout:
            if not holder.is_file() or holder.read_text() != launch:
                raise BusyError(key, f"another launch in {work}") from None
    try:
        holder.write_text(launch)
        yield
    finally:
        lock.release()


def is_held(work: Path, key: str) -> bool:
    """Whether some process holds the lock of a cell."""
    lock = FileLock(work / "locks" / f"{key}.lock")
    try:
        with lock.acquire(timeout=0):
            return False
    except Timeout:
        return True


class Claim:
    """A run that this process has claimed, renewed by a thread until it is released."""

    def __init__(self, client: MlflowClient, run_id: str) -> None:
        self.client, self.run_id = client, run_id
        _held.add(run_id)
        self._released = threading.Event()

    def hold(self) -> None:
        """Make the claim firm, and keep renewing it."""
        self._renew()
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        _held.discard(self.run_id)
        self._released.set()

    def _beat(self) -> None:
        while not self._released.wait(BEAT_S):
            with suppress(Exception):  # a store that is away; the next beat may reach it
                self._renew()

    def _renew(self) -> None:
        self.client.set_tag(self.run_id, CLAIM, claim_tag(firm=True))


def claim_tag(*, firm: bool) -> str:
    """The claim of this process, as it is written."""
    return json.dumps({**asdict(Process.this()), "firm": firm, "time": time.time()})


def holder(run: Run) -> dict[str, Any] | None:
    """The claim on a run if it holds."""
    claim = read(run)
    if claim is None or run.info.status in ("FAILED", "KILLED"):
        return None
    process = Process(*(claim[name] for name in _PROCESS))
    if process.is_gone or (process == Process.this() and run.info.run_id not in _held):
        return None
    return claim if time.time() - claim["time"] < EXPIRES_S else None


def read(run: Run) -> dict[str, Any] | None:
    """The claim on a run, whether it holds or not."""
    try:
        claim = json.loads(run.data.tags.get(CLAIM, ""))
        return claim if {*_PROCESS, "firm", "time"} <= claim.keys() else None
    except (ValueError, AttributeError):
        return None


def who(claim: dict[str, Any]) -> str:
    return f"process {claim['pid']} on {claim['host']}"


def is_undecided(claim: dict[str, Any]) -> bool:
    """Whether its process is still looking whether to make it firm."""
    return not claim["firm"] and time.time() - claim["time"] < _DECISION_S
