"""A sweep on disk: its plan, and beside it what each cell is at, for any process that wants to look.

``plan.json`` is written by the launching process; ``KEY.running`` and then ``KEY.json`` by the job of a cell,
each whole or not at all.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pipelines.processes import Process

STATES = ("queued", "running", "done", "failed", "skipped", "interrupted", "deferred", "undelivered")
_PLAN = "plan.json"


@dataclass(frozen=True)
class Cell:
    """A planned cell; `group` is what cells of similar duration share, `overrides` what its job is launched with."""

    key: str
    label: str
    group: str
    complete: bool
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Outcome:
    """How a cell ended: ``done``, ``complete`` (was so before) or ``failed``; for now: ``deferred``, ``undelivered``.

    `own_seconds` leaves out what the cell spent on training its network or waiting for it; `figures` are the
    one or two worth a glance; `trace` is the traceback of what nobody expected; `waits_for` is the cell, this one
    or its network, that another launch works on.
    """

    status: str
    seconds: float = 0.0
    own_seconds: float = 0.0
    reason: str = ""
    figures: str = ""
    trace: str = ""
    ended: float = 0.0
    waits_for: str = ""


@dataclass(frozen=True)
class Running:
    """What a process is at work on since `started`; `note` is what it said last."""

    process: Process
    started: float
    note: str = ""

    @classmethod
    def read(cls, process: dict[str, Any], **state: Any) -> Running:
        return cls(Process(**process), **state)


class Sweep:
    """A plan on disk and what is beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        plan = json.loads((folder / _PLAN).read_text())
        self.title: str = plan["title"]
        self.parent: str = plan["parent"]
        self.store: dict[str, str] = plan["store"]
        self.launcher = Running(Process(**plan["process"]), plan["started"])
        self.on_terminal: bool = plan["on_terminal"]
        self.cells = [Cell(**cell) for cell in plan["cells"]]
        self._numbers = {cell.key: number for number, cell in enumerate(self.cells, 1)}
        self._read: dict[str, tuple[int, Outcome]] = {}

    @classmethod
    def write(
        cls,
        folder: Path,
        parent: str,
        cells: list[Cell],
        *,
        title: str,
        on_terminal: bool,
        store: dict[str, str] | None = None,
    ) -> Sweep:
        """Write a plan; `store` is the address (uri) and the study where its cells are tracked."""
        folder.mkdir(parents=True)
        launcher = Running(Process.this(), time.time())
        plan = {
            "title": title,
            "parent": parent,
            "store": store or {},
            "process": asdict(launcher.process),
            "started": launcher.started,
            "on_terminal": on_terminal,
            "cells": [asdict(cell) for cell in cells],
        }
        _write(folder / _PLAN, plan)
        return cls(folder)

    def begin(self, key: str, note: str = "", *, of: Running | None = None) -> Running:
        """Write down that this process is at work on a cell, or with `of` what it is at now."""
        now = replace(of, note=note) if of else Running(Process.this(), time.time(), note)
        with suppress(OSError):  # a full disk is no reason to stop what is under way
            _write(self.folder / f"{key}.running", asdict(now))
        return now

    def record(self, key: str, outcome: Outcome) -> None:
        _write(self.folder / f"{key}.json", asdict(replace(outcome, ended=time.time())))
        (self.folder / f"{key}.running").unlink(missing_ok=True)

    def outcomes(self) -> dict[str, Outcome]:
        """The outcomes so far; a file is read when it is new."""
        for key, written in self._written(".json").items():
            if self._read.get(key, (0,))[0] != written:
                self._read[key] = (written, Outcome(**json.loads((self.folder / f"{key}.json").read_text())))
        known = {cell.key: Outcome("complete") for cell in self.cells if cell.complete}
        return known | {key: outcome for key, (_, outcome) in list(self._read.items())}

    def at_work(self) -> dict[str, Running]:
        """The cells that were begun and have not ended, alive or not, in the order they were begun."""
        found = {}
        for key in self._written(".running"):
            try:
                found[key] = Running.read(**json.loads((self.folder / f"{key}.running").read_text()))
            except FileNotFoundError:
                continue  # it has just ended
        return dict(sorted(found.items(), key=lambda item: item[1].started))

    def states(self) -> dict[str, str]:
        """One of `STATES` for each cell."""
        at_work, ended = self.at_work(), self.outcomes()
        found = {cell.key: "queued" for cell in self.cells}
        found |= {key: "skipped" if end.status == "complete" else end.status for key, end in ended.items()}
        return found | {key: "interrupted" if work.process.is_gone else "running" for key, work in at_work.items()}

    def position(self, key: str) -> str:
        return f"[{self._numbers[key]:>{len(str(len(self.cells)))}}/{len(self.cells)}]"

    def is_over(self) -> bool:
        """Whether nothing will come any more: every cell has ended, or the launching process has."""
        return self.is_finished() or self.launcher.process.is_gone

    def is_finished(self) -> bool:
        return sum(outcome.status != "deferred" for outcome in self.outcomes().values()) == len(self.cells)

    def elapsed_and_left(self) -> str:
        """As in ``elapsed 1:20, about 3:10 left``: what is left is judged by the finished cells of its group.

        While there are groups of which no cell has finished, that is ``at least`` what is left. The cells that
        run now tell how many run at a time.
        """
        ended, now = self.outcomes(), time.time()
        if self.is_over():
            now = max((self.launcher.started, *(outcome.ended for outcome in ended.values())))
        elapsed = f"elapsed {duration(now - self.launcher.started)}"
        spent: dict[str, list[float]] = {}
        for cell in self.cells:
            if cell.key in ended and ended[cell.key].status == "done":
                spent.setdefault(cell.group, []).append(ended[cell.key].own_seconds)
        if not spent or self.is_over():
            return elapsed
        means = {group: sum(seconds) / len(seconds) for group, seconds in spent.items()}
        running = {key: work for key, work in self.at_work().items() if not work.process.is_gone}
        waiting = Counter(cell.group for cell in self.cells if cell.key not in ended)
        total = sum(means.get(group, 0.0) * count for group, count in waiting.items())
        group_of = {cell.key: cell.group for cell in self.cells}
        under_way = sum(min(now - work.started, means.get(group_of[key], 0.0)) for key, work in running.items())
        left = duration((total - under_way) / max(1, len(running)))
        if set(waiting) <= set(means):
            return f"{elapsed}, about {left} left"
        return f"{elapsed}, at least {left} left" if left != "0:00" else elapsed

    def _written(self, ending: str) -> dict[str, int]:
        """The cells that have a file of this kind, and when it was written (ns)."""
        files = [entry for entry in os.scandir(self.folder) if entry.name.endswith(ending)]
        names = [entry.name.removesuffix(ending) for entry in files]
        return {name: _modified(entry) for name, entry in zip(names, files, strict=True) if name in self._numbers}


def newest(work: Path) -> Path | None:
    """The folder of the sweep in a working folder that was launched last."""
    plans = list((work / "sweeps").glob(f"*/{_PLAN}"))
    return max(plans, key=lambda plan: plan.stat().st_mtime).parent if plans else None


def duration(seconds: float) -> str:
    """
    >>> duration(3725)
    '1:02:05'
    """
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _modified(entry: os.DirEntry[str]) -> int:
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:  # it has just been replaced or removed
        return -1


def _write(path: Path, content: dict[str, Any]) -> None:
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    scratch.write_text(json.dumps(content, indent=1))
    scratch.replace(path)
