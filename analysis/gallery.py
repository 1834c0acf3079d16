"""The clean, adversarial and difference images that attack runs keep, for a page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
from mlflow import MlflowClient
from PIL import Image

from analysis.cells import bits_order
from analysis.page import data_uri
from analysis.store import NoArtifactError, artifact

_STEP = re.compile(r"clean_adversarial_difference\D+step\D(\d+)\D.*\.png")
_AXES = ("data", "model", "bits", "attack", "seed")


@dataclass(frozen=True)
class Gallery:
    """The HTML of the images, and `text` that says which they are."""

    html: str
    text: str


@dataclass(frozen=True)
class _Run:
    label: str
    about: str
    axes: dict[str, str]
    files: list[Path]
    captions: list[str]


def gallery(runs: pd.DataFrame, uri: str, budget: int) -> Gallery:
    """The first image of each run, then the second of each, and so on, for as long as there is room.

    Args:
        runs: attack runs, as `analysis.store.load_runs` gives them.
        budget: characters of HTML the images may take.
    """
    with ExitStack() as fetched:
        stored = [_run(row, uri, fetched) for row in _ordered(runs)]
        return _shown(stored, budget)


def _shown(stored: Sequence[_Run], budget: int) -> Gallery:
    shown: list[list[str]] = [[] for _ in stored]
    total = sum(len(run.files) for run in stored)
    size = 0
    for place in range(max((len(run.files) for run in stored), default=0)):
        for run, figures in zip(stored, shown, strict=True):
            if place < len(run.files) and size < budget:
                figures.append(_figure(run, place))
                size += len(figures[-1])
    cells = [_cell(run, figures) for run, figures in zip(stored, shown, strict=True) if figures]
    varied = [axis for axis in _AXES if len({run.axes[axis] for run in stored}) > 1]
    count = sum(map(len, shown))
    if count == total:
        left_out = f"All {total:,} that the runs keep are here."
    else:
        left_out = (
            f"{count:,} of the {total:,} that the runs keep are here, the first ones of each: the page is limited."
        )
    text = (
        "Clean, adversarial, and their difference around mid-grey, magnified so that the largest change fills the"
        f" range. The same seed attacks the same images wherever the networks get them right. {left_out}"
    )
    return Gallery(f'<div class="gallery" data-axes="{" ".join(varied)}">{"".join(cells)}</div>' if cells else "", text)


def _ordered(runs: pd.DataFrame) -> list[dict[str, str]]:
    rows = [{str(name): value for name, value in row.items()} for row in runs.to_dict("records")]
    return sorted(rows, key=lambda row: (row["params.data"], row["params.model"], row["params.attack"],
                                         int(row["params.seed"]), bits_order(row["params.bits"])))  # fmt: skip


def _run(row: dict[str, str], uri: str, fetched: ExitStack) -> _Run:
    """What a run keeps; its files last as long as `fetched`."""

    def kept(path: str) -> Path | None:
        try:
            return fetched.enter_context(artifact(uri, row["run_id"], path))
        except NoArtifactError:
            return None

    folder, table = kept("images"), kept("per_image.json")
    found = (
        {int(match[1]): path for path in folder.iterdir() if (match := _STEP.fullmatch(path.name))} if folder else {}
    )
    places = sorted(found)
    axes = {axis: str(row[f"params.{axis}"]) for axis in _AXES}
    return _Run(
        f"{axes['attack']} on {axes['model']} {axes['bits']}, seed {axes['seed']}",
        f"adversarial accuracy {float(row['metrics.adversarial_accuracy']):.3f}, n = {int(float(row['metrics.n']))}",
        axes,
        [found[place] for place in places],
        _captions(table, places, _classes(row["run_id"], uri)),
    )


def _captions(table: Path | None, places: Sequence[int], classes: Sequence[str]) -> list[str]:
    if table is None:
        return [""] * len(places)
    split = json.loads(table.read_text())
    rows = [dict(zip(split["columns"], split["data"][place], strict=True)) for place in places]
    return [
        f"test image {row['index']}: {_named(row['label'], classes)} → {_named(row['adv_prediction'], classes)},"
        f" {row['outcome'].split(':')[0]}, L2 {row['l2']:.2f}, L∞ {row['linf']:.2f}"
        for row in rows
    ]


def _named(label: int, classes: Sequence[str]) -> str:
    return classes[label] if label < len(classes) else str(label)


def _classes(run_id: str, uri: str) -> list[str]:
    inputs = MlflowClient(uri).get_run(run_id).inputs
    schemas = [used.dataset.schema for used in inputs.dataset_inputs] if inputs else []
    return next((json.loads(schema)["classes"] for schema in schemas if schema), [])


def _figure(run: _Run, place: int) -> str:
    caption = escape(run.captions[place])
    source, width, height = _picture(run.files[place])
    about = f'alt="clean, adversarial and difference of {caption}" width="{width}" height="{height}"'
    image = f'<img {about} src="{source}">'
    heads = "<b><span>clean</span><span>adversarial</span><span>difference</span></b>"
    return f"<figure>{image}<figcaption>{heads}{caption}</figcaption></figure>"


def _cell(run: _Run, figures: Sequence[str]) -> str:
    data = "".join(f' data-{axis}="{escape(value)}"' for axis, value in run.axes.items())
    summary = f"<summary>{escape(run.label)} <span>– {escape(run.about)}</span></summary>"
    return f'<details{data}>{summary}<div class="shots">{"".join(figures)}</div></details>'


def _picture(path: Path) -> tuple[str, int, int]:
    """The picture at its own resolution, which the runs keep enlarged: address, width and height."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    factor = next(f for f in range(pixels.shape[0], 0, -1) if _is_enlarged(pixels, f))
    small = Image.fromarray(pixels[::factor, ::factor])
    if (pixels == pixels[..., :1]).all():
        small = small.convert("L")
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return data_uri(buffer.getvalue()), *small.size


def _is_enlarged(pixels: np.ndarray, factor: int) -> bool:
    if any(side % factor for side in pixels.shape[:2]):
        return False
    return np.array_equal(pixels, pixels[::factor, ::factor].repeat(factor, 0).repeat(factor, 1))
