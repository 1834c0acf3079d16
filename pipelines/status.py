"""How a sweep is getting on: ``python -m pipelines.status [FOLDER] [--watch]``, from any shell that sees its folder.

The process that launches a sweep shows the same: a live table on a terminal, plain lines elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.plan import STATES, Running, Sweep, duration, newest
from pipelines.progress import QUIET_S, above, say, silent_for

_EVERY_S = 0.5
_HEIGHT = 40
_STYLES = {"running": "cyan", "done": "green", "failed": "bold red", "interrupted": "yellow", "skipped": "dim"}
_AROUND = 8  # lines of the table that are neither a group nor a cell


def table(sweep: Sweep, height: int = _HEIGHT) -> RenderableType:
    """Cells by group and state, then those that run and those that failed; at most about `height` lines."""
    states, outcomes = sweep.states(), sweep.outcomes()
    labels = {cell.key: cell.label for cell in sweep.cells}
    at_work = [(labels[key], work) for key, work in sweep.at_work().items()]
    failed = [(labels[key], end.reason) for key, end in outcomes.items() if end.status == "failed"]
    room = max(3, (height - _AROUND) // 3)
    running, failures = _running(at_work, room), _failures(failed, room)
    groups = _groups(sweep, states, max(3, height - _AROUND - running.row_count - failures.row_count))
    bar = ProgressBar(
        total=len(sweep.cells), completed=len(outcomes), width=20, complete_style="green", finished_style="green"
    )
    head = _lines()
    head.add_row(bar, f"{len(outcomes)} of {len(sweep.cells)}", sweep.elapsed_and_left(), _whole(sweep))
    parts: list[RenderableType] = [Text(sweep.title, style="bold", overflow="ellipsis", no_wrap=True), head, groups]
    return Group(*parts, *(part for part in (running, failures) if part.row_count))


def _whole(sweep: Sweep) -> Text:
    if sweep.is_finished():
        return Text("finished", style="green")
    if sweep.is_over():
        return Text("interrupted (run it again to go on)", style="yellow")
    return Text("running", style="cyan")


def _groups(sweep: Sweep, states: dict[str, str], room: int) -> Table:
    """One row per group and one for all; the groups beyond `room` in one."""
    counts: dict[str, Counter[str]] = {}
    for cell in sweep.cells:
        counts.setdefault(cell.group, Counter())[states[cell.key]] += 1
    if len(counts) > room:
        names = list(counts)
        rest = names[room - 1 :]
        counts = {name: counts[name] for name in names[: room - 1]} | {
            f"{len(rest)} more": sum((counts[name] for name in rest), Counter())
        }
    total = sum(counts.values(), Counter())
    shown = [state for state in STATES if total[state] or state in STATES[:5]]
    found = Table(box=box.SIMPLE_HEAD, show_footer=len(counts) > 1, padding=(0, 1), pad_edge=False)
    found.add_column("", footer="all")
    for state in shown:
        found.add_column(state, justify="right", footer=str(total[state]), style=_STYLES.get(state, ""))
    for name, mine in counts.items():
        found.add_row(name, *(str(mine[state] or "·") for state in shown))
    return found


def _running(at_work: Sequence[tuple[str, Running]], room: int) -> Table:
    found = _lines()
    for label, work in at_work[:room]:
        if work.process.is_gone:
            found.add_row(Text("■", "yellow"), label, Text("interrupted", "yellow"), Text(work.note, "dim"))
        else:
            found.add_row(Text("▶", "cyan"), label, duration(time.time() - work.started), Text(work.note, "dim"))
    return _and_more(found, len(at_work) - room)


def _failures(failed: Sequence[tuple[str, str]], room: int) -> Table:
    found = _lines()
    for label, reason in failed[-room:]:
        found.add_row(Text("✘", "bold red"), label, reason)
    return _and_more(found, len(failed) - room)


def _lines() -> Table:
    """A table of which every row is one line."""
    found = Table.grid(padding=(0, 2))
    for _ in range(4):
        found.add_column(no_wrap=True, overflow="ellipsis")
    return found


def _and_more(table: Table, count: int) -> Table:
    if count > 0:
        table.add_row("", f"and {count} more")
    return table


class Watch:
    """Tells of a sweep until it is stopped: a line for each cell that ends, on a terminal above the live table."""

    def __init__(self, sweep: Sweep, *, fresh: bool = True) -> None:
        """Without `fresh` the cells that have ended by now are not told of."""
        self._sweep = sweep
        known = {cell.key for cell in sweep.cells if cell.complete} if fresh else None
        self._told = {key: end.status for key, end in sweep.outcomes().items() if known is None or key in known}
        self._notes: dict[str, str] = {}
        self._stop = threading.Event()
        self._shown = ExitStack()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> Watch:
        if sys.stderr.isatty():
            console = Console(stderr=True)
            shown = Live(
                console=console, get_renderable=lambda: table(self._sweep, console.height), refresh_per_second=2
            )
            self._shown.enter_context(shown)
            self._shown.enter_context(above(console))
        self._thread.start()
        return self

    def stop(self) -> None:
        """Tell of what has ended by now, and leave the table as it is then."""
        self._stop.set()
        self._thread.join()
        self._tell()
        self._shown.close()

    def wait(self) -> None:
        """Until the sweep is over."""
        while not self._sweep.is_over():
            time.sleep(_EVERY_S)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._tell()

    def _tell(self) -> None:
        outcomes = self._sweep.outcomes()
        for cell in self._sweep.cells:
            if cell.key not in outcomes or self._told.get(cell.key) == outcomes[cell.key].status:
                continue
            ended = outcomes[cell.key]
            self._told[cell.key] = ended.status
            if ended.trace:
                say(ended.trace.rstrip())
            figures = f"FAILED: {ended.reason}" if ended.status == "failed" else ended.figures
            took = f"{ended.seconds:.1f} s; {self._sweep.elapsed_and_left()}"
            say(f"{self._sweep.position(cell.key)} {cell.label}: {figures} ({took})")
        if silent_for() > QUIET_S and not sys.stderr.isatty():
            self._tell_notes()

    def _tell_notes(self) -> None:
        labels = {cell.key: cell.label for cell in self._sweep.cells}
        for key, work in self._sweep.at_work().items():
            if not work.process.is_gone and work.note != self._notes.get(key, ""):
                self._notes[key] = work.note
                say(f"{labels[key]}: {work.note}")


_watch: Watch | None = None


def watch(sweep: Sweep) -> None:
    """Tell of the sweep that this process launches, until `stop_watching`."""
    global _watch
    _watch = Watch(sweep).start()


def stop_watching() -> None:
    global _watch
    if _watch is not None:
        _watch.stop()
        _watch = None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.status", description="Show how a sweep is getting on.")
    parser.add_argument("folder", nargs="?", type=Path, help="the sweep's folder (default: the one launched last)")
    parser.add_argument("--work", type=Path, default=Path("outputs"), help="working folder (default: %(default)s)")
    parser.add_argument("--watch", action="store_true", help="go on until the sweep is over")
    chosen = parser.parse_args(arguments)
    folder = chosen.folder or newest(chosen.work)
    if folder is None or not (folder / "plan.json").is_file():
        where = folder or chosen.work / "sweeps"
        print(
            f"error: no sweep in {where}: name its folder, or with --work the one it was launched with", file=sys.stderr
        )
        return 1
    sweep = Sweep(folder)
    if not chosen.watch:
        console = Console()
        console.print(table(sweep, max(console.height, _HEIGHT) if console.is_terminal else sys.maxsize))
        return 0
    watched = Watch(sweep, fresh=False).start()
    with suppress(KeyboardInterrupt):
        watched.wait()
    watched.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
