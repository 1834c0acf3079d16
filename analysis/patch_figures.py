"""Figures of the patch study: what patches look like, where and at which widths and sizes they work, and alignment."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures import STYLE, Drawing
from analysis.patch_maps import KINDS as MAP_KINDS
from analysis.patch_maps import Maps, maps_of
from analysis.patch_tables import MEASURES
from analysis.patches import (
    ATTACKS,
    DEFENCES,
    ENDS,
    SIZE,
    WIDTHS,
    Patches,
    Rate,
    bits_key,
    in_order,
    rates,
    title_of,
    white_box,
)
from analysis.tables import TITLES, bits_title, counted

_COLOURS = dict(
    zip(DEFENCES, ("#4d4d4d", "#e69f00", "#8c6d00", "#56b4e9", "#0072b2", "#c0504d", "#009e73"), strict=True)
)
_SHIFT, _SPREAD = 0.05, 0.34  # so that intervals do not hide each other: between lines, of all, in widths
_PICTURED = ("patch_lavan", "patch_google")
_SHOWN = 6
_KINDS = {"measured": "o", "shuffled": "_", "noise": "x"}


def all_figures(patches: Patches, pictures: Mapping[str, np.ndarray]) -> list[Drawing]:
    """Every figure there are runs for, those of defences without ablations.

    Args:
        pictures: uint8, ``FINGERPRINT.patch`` (c, k, k) and, with it on them, ``FINGERPRINT.first`` (k, c, h, w).
    """
    patches = patches.without_ablations()
    drawn: list[Drawing] = []
    with mpl.rc_context(STYLE):
        for family in patches.families():
            part = patches.of(family)
            name = _name(family, patches.families())
            top = _top_rate(patches, family)
            about = f"{TITLES.get(family[1], family[1])} on {family[0]}, {family[2]}"
            drawn += [*_pictures(part, pictures, name, about), *_against_bits(part, name, about)]
            drawn += [*_against_size(part, name, about), *_transfers(part, name, about)]
            drawn += [*_alignments(part, name, about), *_sensitivity(part, top, name, about)]
    return drawn


def _name(family: Sequence[str], families: Sequence[Sequence[str]]) -> str:
    """The model; where there are several families of it, the data and the recipe, too."""
    data, model, recipe = family
    several = sum(other[1] == model for other in families) > 1
    return f"{model}-{data}-{recipe}" if several else model


def _pictures(part: Patches, pictures: Mapping[str, np.ndarray], name: str, about: str) -> Iterator[Drawing]:
    """Per attack a row for each defence and width: the patch, and images with it."""
    for attack in _PICTURED:
        runs = white_box(part.attacks, attack)
        runs = runs[(runs["size"] == SIZE) & (runs["seed"] == "0") & (runs["training_seed"] == "0")]
        rows: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for defence in in_order(runs["defence"]):
            mine = runs[runs["defence"] == defence].set_index("bits")["fingerprint"]
            for bits in [bits for bits in ENDS if bits in mine.index]:
                patch, images = (pictures.get(f"{mine[bits]}.{kind}") for kind in ("patch", "first"))
                if patch is not None and images is not None:
                    rows[f"{title_of(defence)}, {bits_title(bits)}"] = patch, images[:_SHOWN]
        if rows:
            yield (
                f"patch-pictures-{name}-{attack.removeprefix('patch_')}",
                f"{about}: {ATTACKS[attack]}, one of {SIZE}×{SIZE} pixels for all images of a network and width (left,"
                f" enlarged), and images that carry it; attack seed 0. Of the widths {' and '.join(ENDS)} bits are"
                " shown. The images are the first that the row's network gets right without the patch, so that rows"
                " differ in some of them.",
                _patched_images(rows),
            )


def _patched_images(rows: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    columns = 1 + max(len(images) for _, images in rows.values())
    figure = Figure(figsize=(0.85 * columns + 1.9, 0.85 * len(rows) + 0.1))
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for line, (title, (patch, images)) in zip(axes, rows.items(), strict=True):
        for axis, image in zip(line, (patch, *images), strict=False):
            axis.imshow(np.moveaxis(image, 0, -1).squeeze(), cmap="gray", vmin=0, vmax=255)
        line[0].text(-0.15, 0.5, title, transform=line[0].transAxes, ha="right", va="center", fontsize=7)
    return figure


def _against_bits(part: Patches, name: str, about: str) -> Iterator[Drawing]:
    """Success rate against width, a panel per attack and a line per defence."""
    found = {attack: white_box(part.attacks, attack) for attack in ATTACKS}
    found = {attack: runs[runs["size"] == SIZE] for attack, runs in found.items()}
    found = {attack: runs[runs["bits"].isin(WIDTHS)] for attack, runs in found.items()}
    found = {attack: runs for attack, runs in found.items() if len(runs)}
    if not found:
        return
    figure, axes = _panels(len(found))
    for axis, (attack, runs) in zip(axes, found.items(), strict=True):
        _lines(axis, rates(runs, "defence", "bits"), WIDTHS, _forms(part.attacks["defence"]))
        axis.set_title(ATTACKS[attack])
        axis.set_xticks(range(len(WIDTHS)), WIDTHS)
        axis.set_xlabel("bits")
    _labelled(figure, axes)
    yield (
        f"patch-bits-{name}",
        f"{about}: success rate of white-box patches of {SIZE}×{SIZE} pixels against the width, with 95 %"
        f" intervals over images and seeds; lines join neighbouring widths that were both run;"
        f" {_counted(pd.concat(found.values()))}.",
        figure,
    )


def _against_size(part: Patches, name: str, about: str) -> Iterator[Drawing]:
    """Success rate against the side of the patch, a panel per width and a line per defence."""
    runs = white_box(part.attacks, "patch_lavan")
    sizes = sorted(runs["size"].unique())
    if len(sizes) < 2:
        return
    several = runs.groupby("bits")["size"].nunique()
    widths = sorted(several[several > 1].index, key=bits_key)
    figure, axes = _panels(len(widths))
    for axis, bits in zip(axes, widths, strict=True):
        _lines(axis, rates(runs[runs["bits"] == bits], "defence", "size"), sizes, _forms(part.attacks["defence"]))
        axis.set_title(bits_title(bits) if bits in WIDTHS else f"{bits_title(bits)}, not trained at")
        axis.set_xticks(range(len(sizes)), [f"{size}×{size}" for size in sizes])
        axis.set_xlabel("pixels")
    _labelled(figure, axes)
    yield (
        f"patch-size-{name}",
        f"{about}: success rate of one white-box LAVAN patch against its size, with 95 % intervals over images and"
        f" seeds; lines join neighbouring sizes that were both run. Patches of {SIZE}×{SIZE} were trained on;"
        f" {_counted(runs)}.",
        figure,
    )


def _panels(count: int) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(2.3 * count + 1.4, 3))
    return figure, np.atleast_1d(figure.subplots(1, count, sharey=True))


def _labelled(figure: Figure, axes: np.ndarray) -> None:
    axes[0].set_ylabel("attack success rate")
    axes[0].set_ylim(-0.03, 1.03)
    handles = {label: handle for axis in axes for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False, fontsize=7)


def _forms(defences: Iterable[str]) -> dict[str, str]:
    """Markers and lines: of usual settings solid, of unusual ones broken, each of a defence in another way."""
    forms: dict[str, str] = {}
    broken: dict[str, Iterator[str]] = {}
    for defence in in_order(defences):
        others = broken.setdefault(_colour(defence), itertools.cycle(("o--", "s:", "^-.")))
        forms[defence] = "o-" if defence in DEFENCES else next(others)
    return forms


def _lines(axis: Axes, found: Mapping[tuple, Rate], places: Sequence[object], forms: Mapping[str, str]) -> None:
    """Per defence, see `_forms`, points at the places it has, joined where neighbours; `found`: (defence, place)."""
    defences = in_order(defence for defence, _ in found)
    shift = min(_SHIFT, _SPREAD / len(defences))
    for number, defence in enumerate(defences):
        mine = [found.get((defence, place)) for place in places]
        values = np.array([rate.value if rate else np.nan for rate in mine])  # NaN breaks a line
        errors = np.abs(np.array([rate.interval if rate else (np.nan, np.nan) for rate in mine]).T - values)
        shifted = np.arange(len(places)) + shift * (number - (len(defences) - 1) / 2)
        colour, label = _colour(defence), title_of(defence)
        face = colour if defence in DEFENCES else "white"
        axis.errorbar(shifted, values, yerr=errors, fmt=forms[defence], mfc=face, color=colour, ms=3, lw=1, label=label)


def _transfers(part: Patches, name: str, about: str) -> Iterator[Drawing]:
    """Heat maps, source by target width: rows attacks, columns defences."""
    found = {attack: white_box(part.transfers, attack) for attack in ATTACKS}
    found = {attack: runs[runs["size"] == SIZE] for attack, runs in found.items()}
    found = {attack: runs for attack, runs in found.items() if len(runs)}
    if not found:
        return
    rows = pd.concat(found.values())
    defences = in_order(rows["defence"])
    widths = sorted({*rows["bits"], *rows["target_bits"]}, key=bits_key)
    figure = Figure(figsize=(2.2 * len(defences) + 0.7, 2.2 * len(found) + 0.5))
    axes = figure.subplots(len(found), len(defences), squeeze=False, sharex=True, sharey=True)
    complete = True
    for line, (attack, runs) in zip(axes, found.items(), strict=True):
        line[0].set_ylabel(f"{ATTACKS[attack]}\nmade at, bits", fontsize=8)
        for axis, defence in zip(line, defences, strict=True):
            complete &= _square(axis, rates(runs[runs["defence"] == defence], "bits", "target_bits"), widths)
    for axis, defence in zip(axes[0], defences, strict=True):
        axis.set_title(textwrap.fill(title_of(defence), 34), fontsize=8)
    figure.supxlabel("shown to, bits", fontsize=8)
    yield (
        f"patch-transfer-{name}",
        f"{about}: share of patched images made at one width that another width of the same defence gets wrong, both"
        f" right without the patch; n = {rows['n'].min():,} to {rows['n'].max():,} per square"
        f"{'' if complete else '; hatched: not run'}.",
        figure,
    )


def _square(axis: Axes, found: Mapping[tuple, Rate], widths: Sequence[str]) -> bool:
    """Rates of one defence, hatched where there are none; whether there are all."""
    axis.patch.set(facecolor="#f4f4f4", edgecolor="#c8c8c8", hatch="////", linewidth=0)
    matrix = np.full((len(widths), len(widths)), np.nan)
    for (source, target), rate in found.items():
        matrix[widths.index(source), widths.index(target)] = rate.value
    axis.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
    for (row, column), rate in np.ndenumerate(matrix):
        if np.isfinite(rate):
            shade = "white" if rate > 0.6 else "black"
            axis.text(column, row, f"{rate:.2f}", ha="center", va="center", fontsize=6, color=shade)
    axis.set_xticks(range(len(widths)), widths)
    axis.set_yticks(range(len(widths)), widths)
    axis.tick_params(length=0, labelsize=7)
    return bool(np.isfinite(matrix).all())


def _alignments(part: Patches, name: str, about: str) -> Iterator[Drawing]:
    """Similarity of input gradients by pair of widths, beside what unrelated ones have: on clean images and patched."""
    for images in map(str, part.alignments["images"].unique()):
        rows = part.alignments[part.alignments["images"] == images]
        which = re.sub(r"\W+", "-", images.lower())
        yield _alignment(rows, f"{name}{which and f'-{which}'}", f"{about}{images and f', images with {images}'}")


def _alignment(rows: pd.DataFrame, name: str, about: str) -> Drawing:
    pairs = list(dict.fromkeys(rows["pair"]))
    defences = in_order(rows["defence"])
    figure = Figure(figsize=(10, 5.2))
    axes = figure.subplots(2, 2, sharex=True).flat
    measured = rows[rows["kind"] == "measured"].groupby(["defence", "pair"]).mean(numeric_only=True)
    widest = max((measured[f"{measure}_high"] - measured[measure]).max() for measure in MEASURES)
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for number, defence in enumerate(defences):
            for kind, marker in _KINDS.items():
                mine = rows[(rows["defence"] == defence) & (rows["kind"] == kind)]
                mine = mine.groupby("pair").mean(numeric_only=True).reindex(pairs)
                at = np.arange(len(pairs)) + 0.8 * ((number + 0.5) / len(defences) - 0.5)
                half = mine[f"{measure}_high"] - mine[measure] if kind == "measured" else None
                colour, side = (_colour(defence), 2) if kind == "measured" else ("#9a9a9a", 4)
                axis.errorbar(at, mine[measure], yerr=half, fmt=marker, color=colour, ms=side, lw=1, capsize=2.5)
        axis.set_ylabel(f"{title}, mean")
        axis.set_xticks(range(len(pairs)), [pair.replace("-", "↔") for pair in pairs], fontsize=8)
        axis.axhline(0, color="#d0d0d0", lw=0.6, zorder=0)
    figure.supxlabel("bits", fontsize=9)
    named = [Line2D([], [], marker="o", ls="", ms=4, color=_colour(d), label=title_of(d)) for d in defences]
    nulls = {"_": "other images (null)", "x": "white noise (null)"}
    named += [Line2D([], [], marker=m, ls="", ms=4, color="#9a9a9a", label=label) for m, label in nulls.items()]
    figure.legend(handles=named, loc="outside right center", frameon=False, fontsize=7)
    return (
        f"patch-alignment-{name}",
        f"{about}: how alike the input gradients of an image are at two widths, mean over"
        f" n = {int(rows['n'].min()):,} images and more; the bars are 95 % intervals, at most"
        f" ± {widest:.3f}, so that many are no higher than their marker; grey: gradients of different images and white"
        " noise. Only what lies above the grey marks is alignment.",
        figure,
    )


def _top_rate(patches: Patches, family: Sequence[str]) -> float:
    """The highest rate on all maps of the family's data and model: where the colours of each of them end."""
    alike = [other for other in patches.families() if tuple(other[:2]) == tuple(family[:2])]
    found = [maps.rows["success_rate"].max() for other in alike for maps in maps_of(patches.of(other).sensitivities)]
    return max(found, default=0.0) or 1.0


def _sensitivity(part: Patches, top: float, name: str, about: str) -> Iterator[Drawing]:
    """Per defence and patch: where on the image the patch, and noise of its size, breaks most."""
    found = maps_of(part.sensitivities)
    several = len({maps.stride for maps in found}) > 1
    for maps in found:
        which = f"{maps.defence.replace(' ', '')}-{maps.attack.removeprefix('patch_')}{maps.suffix}"
        stride = f"-every-{maps.stride}" if several else ""
        yield (
            f"patch-sensitivity-{name}-{which}{stride}",
            f"{about}, {title_of(maps.defence)}: success rate of the {maps.patch} patch (top) and of noise of its size"
            " (bottom) by the pixel of the image that its upper left corner lies on; above each map its mean. Colours"
            " mean the same in all maps of the model and data set, and tell more of low rates than of high ones;"
            f" n = {counted(maps.images)} images per map.",
            _mapped(maps, top),
        )


def _mapped(maps: Maps, top: float) -> Figure:
    """A column for each width; `top`: the rate at which the colours end."""
    figure = Figure(figsize=(1.6 * len(maps.widths) + 1.6, 3.8))
    axes = figure.subplots(2, len(maps.widths), squeeze=False, sharex=True, sharey=True)
    for line, kind in zip(axes, MAP_KINDS, strict=True):
        for axis, bits in zip(line, maps.widths, strict=True):
            places = maps.places(bits, kind)
            (first, last), (left, right) = (np.array(at, float)[[0, -1]] for at in places.axes)
            edges = np.array((left, right, last, first)) + maps.stride / 2 * np.array((-1, 1, 1, -1))
            norm = PowerNorm(0.5, vmin=0, vmax=top)
            drawn = axis.imshow(places, norm=norm, cmap="magma", extent=tuple(edges))
            axis.set_title(f"{kind}, {bits_title(bits)}: {places.to_numpy().mean():.2f}", fontsize=7)
            axis.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(4, integer=True))
            axis.tick_params(labelsize=7)
    figure.supxlabel("column of the patch's corner, pixels", fontsize=8)
    figure.supylabel("row of the patch's corner, pixels", fontsize=8)
    ticks = [rate for rate in (0, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1) if rate <= top]
    figure.colorbar(drawn, ax=axes, shrink=0.7, label="success rate", ticks=ticks)
    return figure


def _counted(runs: pd.DataFrame) -> str:
    found = rates(runs, "attack", "defence", "bits", "size")
    return f"n = {counted([rate.n for rate in found.values()])} per point"


def _colour(defence: str) -> str:
    return _COLOURS.get(defence.split(":")[0].split(",")[0], "#999999")
