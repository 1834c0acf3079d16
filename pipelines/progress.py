"""What a person sees while cells run: one live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_live: Progress | None = None


def say(line: str) -> None:
    """A line that stays."""
    if _live is not None:
        _live.console.print(line, markup=False, highlight=False)
    else:
        print(line, file=sys.stderr, flush=True)


def note(text: str) -> None:
    """What is going on right now; shown on a terminal only."""
    if _live is not None:
        _live.update(_live.task_ids[0], now=text)


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
