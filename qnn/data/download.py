"""Verified downloads with a progress bar."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pooch

from qnn.data.images import DataError

TIMEOUT_S = 20


def fetch(urls: list[str], *, folder: Path, name: str, md5: str, advice: str) -> Path:
    """Download `name` into `folder` from the first address that answers, and check its MD5.

    Raises:
        DataError: nothing answered, or what came was not the right file; ends with `advice`.
    """
    made = next((parent for parent in reversed((folder, *folder.parents)) if not parent.exists()), None)
    problems = []
    for url in urls:
        try:
            downloader = pooch.HTTPDownloader(progressbar=True, timeout=TIMEOUT_S)
            return Path(pooch.retrieve(url, known_hash=f"md5:{md5}", fname=name, path=folder, downloader=downloader))
        except (OSError, ValueError) as error:
            problems.append(type(error).__name__)
    if made is not None:
        _remove_if_empty(folder, up_to=made)
    raise DataError(f"{name} is not in {folder} and could not be downloaded ({', '.join(problems)}): {advice}")


def _remove_if_empty(folder: Path, *, up_to: Path) -> None:
    for parent in (folder, *folder.parents):
        with suppress(OSError):
            parent.rmdir()
        if parent == up_to:
            return
