"""What a person sees while cells run: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

QUIET_S = 30

_live: Progress | None = None
_last_line = time.monotonic()


def say(line: str) -> None:
    """A line that stays."""
    global _last_line
    _last_line = time.monotonic()
    if _live is not None:
        _live.console.print(line, markup=False, highlight=False)
    else:
        print(line, file=sys.stderr, flush=True)


def note(text: str, *, of: str) -> None:
    """What is going on with a cell: on the live line, or as a line of its own after half a minute of silence."""
    if _live is not None:
        _live.update(_live.task_ids[0], now=text)
    elif time.monotonic() - _last_line > QUIET_S:
        say(f"{of}: {text}")


@contextmanager
def live(title: str, *, enabled: bool) -> Iterator[None]:
    """Show `title`, the latest `note` and the seconds since, while the block runs on a terminal."""
    global _live
    if not enabled or not sys.stderr.isatty() or _live is not None:
        yield
        return
    from rich.console import Console

    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        TextColumn("[dim]{task.fields[now]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(title, total=None, now="")
        _live = progress
        try:
            yield
        finally:
            _live = None


def duration(seconds: float) -> str:
    """
    >>> duration(3725)
    '1:02:05'
    """
    hours, rest = divmod(int(seconds), 3600)
    minutes, seconds = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
