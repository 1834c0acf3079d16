"""What a person is told while cells run."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

QUIET_S = 30

_console: Console | None = None
_listener: Callable[[str], object] | None = None
_last_line = time.monotonic()


def say(line: str) -> None:
    """A line that stays, above whatever is shown live."""
    global _last_line
    _last_line = time.monotonic()
    if _console is not None:
        _console.print(line, markup=False, highlight=False, soft_wrap=True)
    else:
        print(line, file=sys.stderr, flush=True)


def silent_for() -> float:
    """Seconds since the last line."""
    return time.monotonic() - _last_line


def note(text: str, *, of: str) -> None:
    """What is going on with a cell: to whom it may concern, or as a line after half a minute of silence."""
    if _listener is not None:
        _listener(text)
    elif silent_for() > QUIET_S:
        say(f"{of}: {text}")


@contextmanager
def heard_by(listener: Callable[[str], object]) -> Iterator[None]:
    """Send the notes of the block to a listener."""
    global _listener
    before, _listener = _listener, listener
    try:
        yield
    finally:
        _listener = before


@contextmanager
def above(console: Console) -> Iterator[None]:
    """Print the lines of the block above what the console shows live."""
    global _console
    _console = console
    try:
        yield
    finally:
        _console = None


@contextmanager
def live(title: str, *, enabled: bool) -> Iterator[None]:
    """Show `title`, the latest note and the seconds since, while the block runs on a terminal."""
    if not enabled or not sys.stderr.isatty():
        yield
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("[dim]{task.fields[now]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(title, total=None, now="")
        with above(progress.console), heard_by(lambda text: progress.update(task, now=text)):
            yield
