"""The study's figures: the papers' Figures 3 to 7, and what is easier to see than to read in a table."""

from __future__ import annotations

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import published
from analysis.cells import ATTACKS, STUDY_BITS, bits_order
from analysis.grid import MODELS, select, sweeps
from analysis.quantities import AbsentError, Ours, Paper, Source
from analysis.statistics import Estimate
from analysis.study import Study
from analysis.tables import TITLES, bits_title

OURS, PAPER, STRONG = "#1f5a96", "#c0504d", "#7a7a7a"
ATTACK_TITLES = {"fgsm": "FGSM", "jsma": "JSMA", "uap": "UAP", "cw": "CW", "boundary": "Boundary"}
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "qnn",
    "svg.fonttype": "none",
}
_STRONGER_TITLES = {"pgd, cross-entropy": "PGD", "pgd, margin": "PGD, margin loss", "square": "Square"}
_AT = {"mnist_a": 100, "resnet20": 50}  # iterations of the paper's Figures 4 and 6
_SHOWN = {"mnist_a": [0, 1, 2, 3, 5, 8, 15, 50, 200, 1000], "resnet20": [0, 1, 2, 3, 5, 8, 12, 50, 200, 1000]}


class Point(NamedTuple):
    """A figure and its interval; NaN where it has none."""

    value: float
    interval: tuple[float, float]


Drawing = tuple[str, str, Figure]
"""(file name without ending, caption, figure)"""


def write(drawings: Sequence[Drawing], folder: Path, note: str) -> list[tuple[str, str]]:
    """Write each as PNG and SVG with `note` in its metadata; returns (name, caption) of each."""
    # each missing font family of an SVG's logarithmic axis is a warning; the files name the families all the same
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for name, _, figure in drawings:
            figure.savefig(folder / f"{name}.png", dpi=150, metadata={"Description": note, "Software": None})
            figure.savefig(folder / f"{name}.svg", metadata={"Description": note, "Date": None})
    return [(name, caption) for name, caption, _ in drawings]


def all_figures(study: Study, ours: Ours) -> list[Drawing]:
    """Every figure there are runs for."""
    with mpl.rc_context(STYLE):
        return [
            drawing
            for model in MODELS
            for draw in (
                _against_bits,
                _masking,
                _progress,
                _pairs,
                _long_runs,
                _unrecognisable,
                _small_steps,
                _transfer,
            )
            for drawing in draw(study, ours, model)
        ]


def _against_bits(study: Study, ours: Ours, model: str) -> Iterator[Drawing]:
    """Adversarial accuracy and L2 against bit width, the paper's points beside ours."""
    paper = Paper(published.table6())
    figure, axes = _bits_panels([ATTACK_TITLES[attack] for attack in ATTACKS], STUDY_BITS)
    drawn = False
    for column, attack in enumerate(ATTACKS):
        for row in range(2):
            axis = axes[row, column]
            quantity = functools.partial(_accuracy if row == 0 else _l2, model=model, attack=attack)
            drawn |= _points(axis, functools.partial(quantity, ours), OURS, "ours (95 %)")
            _points(axis, functools.partial(quantity, paper), PAPER, "paper", marker="x", line=False)
            if row == 0 and attack in ("fgsm", "uap"):
                strongest = functools.partial(_strongest, ours, model=model, attack=attack)
                _points(axis, strongest, STRONG, "strongest at the same ε", "s")
    axes[0, -1].legend(*axes[0, 0].get_legend_handles_labels(), frameon=False, fontsize=7)
    if drawn:
        yield (
            f"bits-{model}",
            f"{TITLES[model]}: adversarial accuracy and mean L2 of successful images against bit width, with 95 %"
            " bootstrap intervals over images and training seeds; crosses: the paper's Table 6; grey: what the"
            " strongest of FGSM, PGD and Square leaves at the same ε.",
            figure,
        )


def against_bits(cells: pd.DataFrame) -> list[Drawing]:
    """Adversarial accuracy and L2 against bit width of any cells (`analysis.cells.cell_table`), per data and model."""
    with mpl.rc_context(STYLE):
        groups = cells.groupby(["data", "model"])
        return [_cells_against_bits(str(data), str(model), group) for (data, model), group in groups]


def _cells_against_bits(data: str, model: str, cells: pd.DataFrame) -> Drawing:
    bits = sorted(cells["bits"].unique(), key=bits_order)
    attacks = [(attack, variant) for attack, variant in cells[["attack", "variant"]].drop_duplicates().to_numpy()]
    several = Counter(attack for attack, _ in attacks)
    titles = [ATTACK_TITLES.get(a, a) + (f"\n{variant}" if several[a] > 1 else "") for a, variant in attacks]
    figure, axes = _bits_panels(titles, bits)
    for column, (attack, variant) in enumerate(attacks):
        mine = cells[(cells["attack"] == attack) & (cells["variant"] == variant)].set_index("bits")
        for row, name in enumerate(("adversarial_accuracy", "l2")):
            axis = axes[row, column]
            ours, paper = (functools.partial(_figure_of, mine, before + name) for before in ("", "paper_"))
            _points(axis, ours, OURS, "ours (95 %)" if row == 0 else "ours", bits=bits)
            _points(axis, paper, PAPER, "paper", marker="x", line=False, bits=bits)
    handles = max((axis.get_legend_handles_labels() for axis in axes[0]), key=lambda found: len(found[0]))
    axes[0, -1].legend(*handles, frameon=False, fontsize=7)
    return (
        f"bits-{data}-{model}",
        f"{TITLES.get(model, model)} on {data}: adversarial accuracy, with the 95 % Wilson interval of all images, and"
        " mean L2 of successful images against bit width"
        + ("; crosses: the paper's Table 6." if cells["paper_adversarial_accuracy"].notna().any() else "."),
        figure,
    )


def _figure_of(cells: pd.DataFrame, name: str, bits: str) -> Point:
    """A figure of the cell at a width, with its interval where it has one."""
    columns = [cells[column].to_dict() if column in cells else {} for column in (name, f"{name}_low", f"{name}_high")]
    value, low, high = (float(column.get(bits, np.nan)) for column in columns)
    if np.isnan(value):
        raise AbsentError(f"no {name} at {bits}")
    return Point(value, (low, high))


def _bits_panels(titles: Sequence[str], bits: Sequence[str]) -> tuple[Figure, np.ndarray]:
    """Two rows of axes against bit width, adversarial accuracy above L2, with a column for each title."""
    figure = Figure(figsize=(1.2 + 1.96 * len(titles), 4.6))
    axes = figure.subplots(2, len(titles), sharex=True, sharey="row", squeeze=False)
    for axis, title in zip(axes[0], titles, strict=True):
        axis.set_title(title)
        axis.set_ylim(-0.03, 1.03)
    for axis, name in zip(axes[:, 0], ("adversarial accuracy", "L2 of successful images"), strict=True):
        axis.set_ylabel(name)
    for axis in axes.flat:
        axis.set_xticks(range(len(bits)), bits)
    figure.supxlabel("bits of weights and activations")
    return figure, axes


def _accuracy(source: Source, bits: str, *, model: str, attack: str) -> Estimate:
    return source.adversarial_accuracy(model, bits, attack)


def _l2(source: Source, bits: str, *, model: str, attack: str) -> Estimate:
    return source.distance(model, bits, attack, "l2")


def _strongest(source: Source, bits: str, *, model: str, attack: str) -> Estimate:
    return source.strongest(model, bits, attack)


def _points(
    axis: Axes,
    of: Callable[[str], Estimate | Point],
    colour: str,
    label: str,
    marker: str = "o",
    line: bool = True,
    bits: Sequence[str] = STUDY_BITS,
) -> bool:
    """One point with interval per width; whether there was any."""
    found = {}
    for place, width in enumerate(bits):
        try:
            found[place] = of(width)
        except AbsentError:
            continue
    if not found:
        return False
    values = np.array([estimate.value for estimate in found.values()])
    intervals = np.array([estimate.interval for estimate in found.values()])
    places = list(found)
    if line:
        axis.errorbar(
            places, values, yerr=np.abs(intervals.T - values), fmt=f"{marker}-", color=colour, ms=3, lw=1, label=label
        )
    else:
        axis.plot(places, values, marker, color=colour, ms=5, label=label)
    return True


def _masking(study: Study, ours: Ours, model: str) -> Iterator[Drawing]:
    """What single-step, iterated and gradient-free attacks leave at the same ε."""
    figure = Figure(figsize=(9, 2.8))
    axes = figure.subplots(1, 2, sharey=True)
    drawn = False
    for axis, attack in zip(axes, ("fgsm", "uap"), strict=True):
        means = {}
        for bits in STUDY_BITS:
            try:
                kept = ours.kept_by_attack(model, bits, attack)
            except AbsentError:
                continue
            if kept.shape[1] > 1:
                means[bits] = pd.concat([kept.mean(), pd.Series({"any of them": kept.all(axis=1).mean()})])
        if not means:
            continue
        drawn = True
        table = pd.DataFrame(means).T.rename(columns={**ATTACK_TITLES, **_STRONGER_TITLES})
        table.plot.bar(ax=axis, width=0.8, rot=0, colormap="viridis", legend=axis is axes[0])
        for bars in axis.containers:
            axis.bar_label(bars, fmt="%.2f", fontsize=5, rotation=90, padding=2)
        eps = published.hyperparameters(model, attack)["eps"]
        axis.set_title(f"within the ε = {eps:g} of {ATTACK_TITLES[attack]}")
        axis.set_xlabel("bits")
    if drawn:
        axes[0].set_ylabel("adversarial accuracy")
        axes[0].set_ylim(0, 1)
        axes[0].legend(frameon=False, fontsize=7)
        yield (
            f"masking-{model}",
            f"{TITLES[model]}: adversarial accuracy under attacks with the same ε, attack seed 0. Where the single"
            " step leaves much and PGD or Square little, the gradient was masked, not the network robust.",
            figure,
        )


def _progress(study: Study, ours: Ours, model: str) -> Iterator[Drawing]:
    """Figure 3: Boundary over its iterations, in pictures and as distance."""
    runs = _long_boundary(study, model)
    if runs.empty:
        return
    for bits in ("FP", "1"):
        chosen = runs[runs["params.bits"] == bits]
        pictures = study.pictures.get(f"{_key(chosen)}.snapshots")
        if pictures is not None:
            shown = [i for i in _SHOWN[model] if i in _iterations(study, chosen)]
            places = [_iterations(study, chosen).index(i) for i in shown]
            clean = study.pictures[f"{_key(chosen)}.clean"]
            rows = [[*pictures[places, k], clean[k]] for k in range(5)]
            yield (
                f"figure3-{model}-{bits}",
                f"Figure 3, {TITLES[model]} {bits_title(bits)}: Boundary's image after the iterations on top.",
                _pictures(rows, column_titles=[*map(str, shown), "clean"]),
            )
    figure = Figure(figsize=(5, 3))
    axis = figure.subplots()
    for place, bits in enumerate(STUDY_BITS):
        mine = runs.loc[runs["params.bits"] == bits, "fingerprint"]
        curve = study.progress[study.progress["fingerprint"].isin(mine)]
        if len(curve):
            colour = mpl.colormaps["viridis"](place / len(STUDY_BITS))
            axis.plot(curve["iteration"] + 1, curve["l2"], "o-", ms=2, lw=1, label=bits, color=colour)
    axis.set_xscale("log")
    axis.set_xlabel("iterations + 1")
    axis.set_ylabel("mean L2")
    axis.axvline(published.hyperparameters(model, "boundary")["max_iter"] + 1, color="grey", lw=0.8, ls=":")
    axis.legend(title="bits", frameon=False, fontsize=7)
    yield (
        f"figure3-{model}-distance",
        f"{TITLES[model]}: mean L2 of Boundary's images over its iterations,"
        f" n = {int(runs['metrics.n'].min())} per width; dotted: where the paper stops.",
        figure,
    )


def _pairs(study: Study, ours: Ours, model: str) -> Iterator[Drawing]:
    """Figure 4: Boundary on FP and 1 bit after the same number of iterations."""
    found = _on_the_same_images(study, model, {"FP": _AT[model], "1": _AT[model]})
    if found:
        yield (
            f"figure4-{model}",
            f"Figure 4, {TITLES[model]}: Boundary after {_AT[model]} iterations on the FP (top) and the 1-bit network.",
            _pictures([images[:5] for images in found.values()], row_titles=[bits_title(bits) for bits in found]),
        )


def _long_runs(study: Study, ours: Ours, model: str) -> Iterator[Drawing]:
    """Figure 5: 1 bit after 1,000 iterations, FP after 200."""
    iterations = {"1": 1000, "FP": 200}
    found = _on_the_same_images(study, model, iterations)
    if found:
        yield (
            f"figure5-{model}",
            f"Figure 5, {TITLES[model]}: Boundary after 1,000 iterations at 1 bit (top) and after 200 at FP.",
            _pictures(list(found.values()), row_titles=[f"{bits_title(bits)}, {iterations[bits]:,}" for bits in found]),
        )


def _unrecognisable(study: Study, ours: Ours, model: str) -> Iterator[Drawing]:
    """Figure 6: the Boundary images of Table 6 farthest from their originals, and how many look like noise."""
    runs = select(study, sweeps(model)["table6"])
    if len(runs):
        runs = runs[(runs["params.attack"] == "boundary") & (runs["params.seed"] == "0")]
    rows, counts = {}, []
    for bits in ("FP", "1"):
        key = _key(runs[runs["params.bits"] == bits]) if len(runs) else ""
        if f"{key}.farthest" in study.pictures:
            rows[bits_title(bits)] = study.pictures[f"{key}.farthest"]
            with suppress(AbsentError):
                found = [ours.unrecognisable(model, bits, rule) for rule in ("correlation", "z-score")]
                counted = [f"{share.value * share.n:.0f}" for share in found]
                counts.append(f"{bits_title(bits)}: {counted[0]} and {counted[1]} of {found[0].n:,}")
    if rows:
        yield (
            f"figure6-{model}",
            f"Figure 6, {TITLES[model]}: the Boundary images with the largest L2. Unrecognisable, by a correlation with"
            f" the clean image below 0.3, and by a z-score of the L2 of at least 1: {'; '.join(counts)}.",
            _pictures(list(rows.values()), row_titles=list(rows)),
        )


def _small_steps(study: Study, ours: Ours, model: str) -> Iterator[Drawing]:
    """Figure 7: FGSM with a barely visible ε on the FP network."""
    runs = select(study, sweeps(model)["figure7"])
    if runs.empty or f"{_key(runs)}.first" not in study.pictures:
        return
    left = ours.small_fgsm(model)
    low, high = left.interval
    yield (
        f"figure7-{model}",
        f"Figure 7, {TITLES[model]} FP: FGSM with ε = {float(runs['params.attack.eps'].iloc[0]):g}; adversarial"
        f" accuracy {left.value:.3f} ({low:.3f} … {high:.3f}, n = {left.n:,}), in the paper"
        f" {published.SMALL_EPS_FGSM[model]:.3f}.",
        _pictures([study.pictures[f"{_key(runs)}.first"]]),
    )


def _transfer(study: Study, ours: Ours, model: str) -> Iterator[Drawing]:
    """Heat maps of the transfer rate, source by target."""
    for name, sweep in sweeps(model).items():
        runs = select(study, sweep) if sweep.pipeline == "transfer" else pd.DataFrame()
        if runs.empty:
            continue
        rows = study.transfers.merge(runs[["fingerprint", "params.bits", "params.attack"]], on="fingerprint")
        for target, part in rows.groupby("target_model"):
            attacks = [attack for attack in ATTACKS if attack in set(part["params.attack"])]
            figure = Figure(figsize=(2.6 * len(attacks) + 0.6, 3.3))
            axes = np.atleast_1d(figure.subplots(1, len(attacks)))
            for axis, attack in zip(axes, attacks, strict=True):
                matrix = part[part["params.attack"] == attack].pivot_table(
                    index="params.bits", columns="target_bits", values="transfer_rate"
                )
                _heat_map(axis, matrix)
                axis.set_title(ATTACK_TITLES[attack])
            axes[0].set_ylabel(f"source: {TITLES[model]}, bits")
            figure.supxlabel(f"target: {TITLES.get(str(target), str(target))}, bits", fontsize=9)
            yield (
                f"{name.replace('_', '-')}-{model}-{target}",
                f"Transfer rate from {TITLES[model]} to {TITLES.get(str(target), str(target))}: share of images, clean"
                f" ones classified correctly by both, that the target gets wrong; n = {int(part['n'].min()):,} to"
                f" {int(part['n'].max()):,} per square.",
                figure,
            )


def _heat_map(axis: Axes, matrix: pd.DataFrame) -> None:
    matrix = matrix.reindex(index=list(STUDY_BITS), columns=list(STUDY_BITS))
    axis.imshow(matrix, vmin=0, vmax=1, cmap="Blues")
    for (row, column), rate in np.ndenumerate(matrix.to_numpy(dtype=float)):
        if np.isfinite(rate):
            shade = "white" if rate > 0.6 else "black"
            axis.text(column, row, f"{rate:.2f}", ha="center", va="center", fontsize=6, color=shade)
    axis.set_xticks(range(len(STUDY_BITS)), STUDY_BITS)
    axis.set_yticks(range(len(STUDY_BITS)), STUDY_BITS)
    axis.tick_params(length=0)


def _long_boundary(study: Study, model: str) -> pd.DataFrame:
    return select(study, sweeps(model)["stronger_boundary"])


def _on_the_same_images(study: Study, model: str, iterations: Mapping[str, int]) -> dict[str, list[np.ndarray]]:
    """Boundary's pictures at each width after so many iterations, of the images pictured at all of them."""
    runs = _long_boundary(study, model)
    found: dict[str, dict[int, np.ndarray]] = {}
    for bits, iteration in iterations.items():
        mine = runs[runs["params.bits"] == bits] if len(runs) else runs
        known = _iterations(study, mine)
        if iteration not in known:
            return {}
        pictures = study.pictures[f"{_key(mine)}.snapshots"][known.index(iteration)]
        indices = study.images.loc[study.images["fingerprint"] == _key(mine), "index"]
        found[bits] = dict(zip(indices, pictures, strict=False))
    common = [index for index in next(iter(found.values())) if all(index in images for images in found.values())]
    return {bits: [images[index] for index in common] for bits, images in found.items()} if common else {}


def _iterations(study: Study, runs: pd.DataFrame) -> list[int]:
    return study.pictures.get(f"{_key(runs)}.iterations", np.array([], dtype=int)).tolist()


def _key(runs: pd.DataFrame) -> str:
    return str(runs["fingerprint"].iloc[0]) if len(runs) else ""


def _pictures(
    rows: Sequence[Iterable[np.ndarray]], row_titles: Sequence[str] = (), column_titles: Sequence[str] = ()
) -> Figure:
    """Images (c, h, w), uint8, in rows."""
    drawn = [list(images) for images in rows]
    columns = max(map(len, drawn))
    figure = Figure(figsize=(0.85 * columns + 0.9 * bool(row_titles), 0.85 * len(drawn) + 0.25))
    axes = figure.subplots(len(drawn), columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for row, images in enumerate(drawn):
        for column, image in enumerate(images):
            axes[row, column].imshow(np.moveaxis(image, 0, -1).squeeze(), cmap="gray", vmin=0, vmax=255)
        if row_titles:
            axes[row, 0].text(-0.15, 0.5, row_titles[row], transform=axes[row, 0].transAxes, ha="right", va="center")
    for column, title in enumerate(column_titles):
        axes[0, column].set_title(title, fontsize=7)
    return figure
